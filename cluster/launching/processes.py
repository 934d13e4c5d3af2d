"""Descendants of this process, found in /proc (Linux; none are found elsewhere)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.02


@dataclass(frozen=True)
class Process:
    """One process; `started` (clock ticks since boot) distinguishes it from a later one with the same id."""

    pid: int
    started: int
    parent: int
    name: str

    @property
    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        found = _read(self.pid)
        return found is not None and found.started == self.started

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        with suppress(ProcessLookupError):
            if self.alive:
                os.kill(self.pid, signal.SIGKILL)


def descendants(pid: int) -> list[Process]:
    """All descendants of a process, parents before their children."""
    found = [process for entry in Path("/proc").glob("[0-9]*") if (process := _read(int(entry.name)))]
    tree, wanted = [], [pid]
    while wanted:
        above = set(wanted)
        level = [process for process in found if process.parent in above]
        tree += level
        wanted = [process.pid for process in level]
    return tree


def kill_all(processes: Iterable[Process], wait_s: float = 5.0) -> None:
    """Send SIGKILL to all that still run, children before parents, and wait until they are gone."""
    remaining = [process for process in processes if process.alive]
    for process in reversed(remaining):
        process.kill()
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline and any(process.alive for process in remaining):
        time.sleep(_POLL_S)


def _read(pid: int) -> Process | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name is in parentheses and may hold any character, so the fields are counted from its end.
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    if fields[0] in "ZX":
        return None
    return Process(pid, int(fields[19]), int(fields[1]), name)
