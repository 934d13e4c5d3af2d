"""Subprocesses of a verb: their output goes to a log that errors name, and they end with this process."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.command.errors import CommandError, last_line_of

PR_SET_PDEATHSIG = 1


class ChildFailed(CommandError):
    """A subprocess ended with a status other than 0; names its log."""


def _end_with_parent() -> None:
    # Runs between fork and exec, so that a killed demo does not leave a trainer behind.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """One subprocess. It must be started on the main thread: PR_SET_PDEATHSIG follows the thread.

    It gets its own session, so Ctrl-C at the terminal reaches only this process, which decides the order of stopping.
    """

    def __init__(
        self, name: str, command: Sequence[str], log_path: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log_path = log_path
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = False

    def start(self) -> Self:
        """Start it, with stdout and stderr going to the log."""
        self._asked = False
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Its process id; None before the start."""
        return self._process.pid if self._process else None

    def exit_status(self) -> int | None:
        """Its exit status (negative: the signal that ended it); None while it runs."""
        return self._process.poll() if self._process else None

    def check(self) -> bool:
        """True once it has ended with status 0, False while it runs.

        Raises:
            ChildFailed: it ended with another status.
        """
        status = self.exit_status()
        if status is None:
            return False
        if status != 0:
            raise ChildFailed(
                f"{self.name} failed with exit status {status}: {last_line_of(self.log_path)} "
                f"(log: {self.log_path})"
            )
        return True

    def ask_to_stop(self) -> None:
        """Send SIGTERM and return at once; does nothing if it has ended, or was asked before."""
        if not self._asked and self._process is not None and self._process.poll() is None:
            self._asked = True
            self._process.terminate()

    def stop(self, grace_s: float = 10.0) -> None:
        """Send SIGTERM, and after `grace_s` SIGKILL to its process group; does nothing if it has ended."""
        self.ask_to_stop()
        if self._process is None or self._process.poll() is not None:
            return
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            # It leads its own session, so the group's id is its process id, and the group holds no other processes.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
