"""The documented commands as a user runs them: subprocesses with a log, observed only from outside."""

import ctypes
import itertools
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.chaos.black_box.processes import awaited, descendants, wait_for

BIN = Path(sys.executable).parent
_ERROR = "freshet: error: "
# Lines that Ray forwards from its processes begin with their names.
_TRACEBACK = re.compile(r"^Traceback \(most recent call last\)", re.MULTILINE)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_PR_SET_PDEATHSIG = 1
_LOOPBACK = "127.0.0.1"


def _end_with_us() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Command:
    """One command. Starts at once, from the main thread.

    Attributes:
        pid: its process id.
        log: what it has printed.
    """

    def __init__(self, log: Path, *words: object, environment: Mapping[str, str] | None = None) -> None:
        self.words = [str(word) for word in words]
        self.log = log
        environ = {**os.environ, "COLUMNS": "200", **(environment or {})}
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [str(BIN / self.words[0]), *self.words[1:]],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environ,
                start_new_session=True,
                preexec_fn=_end_with_us,
            )
        self.pid = self._process.pid
        awaited.add(self.pid)

    @property
    def status(self) -> int | None:
        """Its exit status (negative: the signal that ended it); None while it runs."""
        return self._process.poll()

    def wait(self, patience_s: float) -> int | None:
        """Its exit status; None if it still runs when the patience is over."""
        wait_for(lambda: self.status is not None, patience_s)
        return self.status

    def family(self) -> set[int]:
        """The process and its descendants."""
        return {self.pid, *descendants(self.pid)}

    def text(self) -> str:
        """Its output, without colours."""
        return _COLOURS.sub("", self.log.read_text(errors="replace"))

    def tail(self, lines: int = 12) -> str:
        """The last lines of its output."""
        return "\n".join(self.text().rstrip().splitlines()[-lines:])

    def error(self) -> str:
        """Its error line without the label; empty if there is none."""
        lines = [line for line in self.text().splitlines() if line.startswith(_ERROR)]
        return lines[-1].removeprefix(_ERROR) if lines else ""

    def name(self) -> str:
        """For people."""
        return " ".join(itertools.takewhile(lambda word: not word.startswith("-"), self.words))


def problem_of_failure(command: Command) -> str:
    """A problem with the way a command failed; empty if it said why in one line, as it must."""
    text = command.text()
    if _TRACEBACK.search(text):
        return f"{command.name()} failed with a traceback (log: {command.log}): {command.error()[:200]}"
    if text.count(_ERROR) != 1:
        return (
            f"{command.name()} failed without one line that says why (log: {command.log}): {command.tail(3)}"
        )
    return ""


def read_json(path: Path) -> Any:
    """The JSON that a command wrote with `--json`; None before that."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def free_port() -> int:
    """A free loopback port."""
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def ray_head(log: Path, cpus: int, temporary: Path) -> tuple[Command, dict[str, str]]:
    """`ray start --head` on loopback with its own ports, and the environment for joining it."""
    environment = {
        "RAY_ADDRESS": f"{_LOOPBACK}:{free_port()}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    head = Command(
        log,
        *("ray", "start", "--head", "--block", f"--num-cpus={cpus}", "--node-ip-address", _LOOPBACK),
        *("--port", environment["RAY_ADDRESS"].partition(":")[2], "--temp-dir", temporary),
        *("--include-dashboard=false", "--ray-client-server-port", free_port(), "--disable-usage-stats"),
        *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port", free_port()),
        "--object-store-memory=100000000",
        environment=environment,
    )
    return head, environment
