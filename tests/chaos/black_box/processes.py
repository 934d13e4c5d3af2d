"""Finds descendants of this process in /proc by name, and signals and counts them by their ids."""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
# Children whose status is read elsewhere; adopted ones are only reaped.
awaited: set[int] = set()


def adopt_orphans() -> None:
    """Make this process the subreaper, so that orphaned descendants become its children and stay visible."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def parents() -> dict[int, int]:
    """The parent of every running process; zombies are not included."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, *_ = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if state != "Z":
            found[int(path.name)] = int(parent)
        elif int(parent) == os.getpid() and int(path.name) not in awaited:
            # Ray's processes end when their raylet has; an unreaped raylet looks alive to them.
            with suppress(ChildProcessError):
                os.waitpid(int(path.name), os.WNOHANG)
    return found


def descendants(of: int) -> set[int]:
    """All descendants of a process."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    open_ = [of]
    while open_:
        new = children.get(open_.pop(), [])
        found.update(new)
        open_ += new
    return found


def name_of(pid: int) -> str:
    """Its command line as in `ps`, which for Ray's workers is their purpose. Empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def named(pids: Iterable[int], *, comm: str = "", title: str = "") -> list[int]:
    """Those whose program is called `comm`, or whose command line begins with `title`."""
    return sorted(
        pid for pid in pids if (comm and _comm_of(pid) == comm) or (title and name_of(pid).startswith(title))
    )


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    return pid in parents()


def send(pids: Iterable[int], number: signal.Signals) -> list[int]:
    """Send a signal; returns the processes that it reached."""
    reached = []
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            reached.append(pid)
    return reached


def left_after(pids: Iterable[int], patience_s: float) -> list[int]:
    """The processes that still run when the patience is over."""
    wanted = set(pids)
    alive = wait_for(lambda: not (wanted & parents().keys()), patience_s)
    return [] if alive else sorted(wanted & parents().keys())


def wait_for(holds: Callable[[], bool], patience_s: float, poll_s: float = 0.2) -> bool:
    """Poll a condition; returns whether it held in time."""
    deadline = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_s)
    return True


def _comm_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
