"""A Ray cluster on this machine whose nodes can be added and lost: each is a separate `ray start`."""

import os
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from cluster.config import FreshetConfig
from deploy.command.children import Child

BIN = Path(sys.executable).parent
_STARTED = "Ray runtime started."
_START_TIMEOUT_S = 180.0
_LOOPBACK = "127.0.0.1"
# Ray would start a worker a CPU before it knows the environment that a run's workers have; they stay idle.
NO_SPARE_WORKERS = {"RAY_prestart_worker_first_driver": "0", "RAY_enable_worker_prestart": "0"}


class LocalRay:
    """A head and, later, further nodes; all of them end with the block.

    `environment` has the variables that a driver needs to join it.
    """

    def __init__(self, cpus: int) -> None:
        # Ray's sockets are in its temporary folder, and their paths must be short.
        self._folder = tempfile.TemporaryDirectory(prefix="fr", dir="/tmp", ignore_cleanup_errors=True)
        self._cpus, self._port = cpus, free_port()
        self._nodes: list[Child] = []
        self.environment = {
            "RAY_ADDRESS": f"{_LOOPBACK}:{self._port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            **NO_SPARE_WORKERS,
        }

    def __enter__(self) -> Self:
        head = (
            *("--head", "--port", str(self._port), "--temp-dir", self._folder.name),
            *(
                "--include-dashboard=false",
                "--ray-client-server-port",
                str(free_port()),
                "--disable-usage-stats",
            ),
        )
        self._start(head, self._cpus)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in reversed(self._nodes):
            node.stop()
        self._folder.cleanup()

    def add_node(self, cpus: int) -> Child:
        """One more node, once it has joined."""
        return self._start(("--address", self.environment["RAY_ADDRESS"]), cpus)

    def lose(self, node: Child) -> None:
        """Lose a node, as in a power failure: SIGKILL to its raylet, whose workers die with it."""
        [raylet] = [pid for pid in _children(node.pid or 0) if _name(pid) == "raylet"]
        os.kill(raylet, signal.SIGKILL)
        node.stop(grace_s=0)

    def train(self, config: FreshetConfig) -> Child:
        """`freshet train` with these settings, as a driver of this cluster; not started yet."""
        folder = Path(config.storage_path)
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / "settings.yaml"
        settings.write_text(yaml.safe_dump(asdict(config)))
        command = [sys.executable, "-m", "deploy", "train", "--config", str(settings)]
        return Child("freshet train", command, folder / "train.log", self.environment)

    def _start(self, place: tuple[str, ...], cpus: int) -> Child:
        ports = (
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--dashboard-agent-listen-port",
            str(free_port()),
        )
        command = [
            *(str(BIN / "ray"), "start", "--block", *place, f"--num-cpus={cpus}", *ports),
            *("--node-ip-address", _LOOPBACK, "--object-store-memory=100000000"),
        ]
        log = Path(self._folder.name) / f"start-{len(self._nodes)}.log"
        node = Child("ray", command, log, self.environment).start()
        self._nodes.append(node)
        wait_until(lambda: _STARTED in log.read_text(), node, _START_TIMEOUT_S)
        return node


def wait_until(holds: Callable[[], bool], child: Child, timeout_s: float) -> None:
    """Poll ten times a second; fails with the child's log if the child ends or the condition does not come true."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        ended = child.exit_status() is not None
        if ended or time.monotonic() > deadline:
            what = "ended" if ended else f"is no further after {timeout_s:g} s"
            raise AssertionError(f"{child.name} {what}:\n{child.log_path.read_text()[-6000:]}")
        time.sleep(0.1)


def free_port() -> int:
    """A free loopback port."""
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _children(parent: int) -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _parent_of(path) == parent]


def _parent_of(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()
