"""Checks that a group ended as its fault explains. Otherwise it found a bug, even if the next group continues well.

A killed rank brings down the others, some by an exception and the rest by the driver, so the check is which ended
first. All processes use one clock (`time.monotonic`).
"""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.faults import Fault

FAILED, FINISHED, DRIVER_LOST = "failed", "finished", "driver lost"
# Training continues without checkpoints when a disk is full, but cannot end without its last one.
_NO_LAST_CHECKPOINT = "the last checkpoint could not be written"


class DiedOfItself(AssertionError):
    """A group ended for another reason than its fault."""


@dataclass(frozen=True)
class Raised:
    """A rank that ended by an exception.

    Attributes:
        rank: the rank's number.
        at_s: time of the exception.
        error: its message.
        of_a_peer: whether it came from a collective, as happens when another rank is gone.
    """

    rank: int
    at_s: float
    error: str
    of_a_peer: bool


@dataclass(frozen=True)
class Ended:
    """The records of a group's end.

    Attributes:
        outcome: `finished`, `failed`, or `driver lost` if there is none from the driver.
        first: the first rank that did not end normally, and its wait status.
        raised: ranks that ended by an exception, the first one first.
        disk_full: whether the fault filled a disk.
        struck_at_s: when the group was struck, from inside or outside; None if it was not.
    """

    outcome: str
    first: tuple[int, int] | None = None
    raised: tuple[Raised, ...] = ()
    disk_full: bool = False
    struck_at_s: float | None = None


def struck(fault: Fault | None, ended: Ended) -> bool:
    """Whether the fault has struck the group (a group may finish before it).

    Raises:
        DiedOfItself: the group ended for another reason.
    """
    if ended.outcome == FINISHED:
        # A group that finishes was not killed; the signal came too late. A broker that comes back kills nothing.
        return fault is not None and fault.target == "broker" and ended.struck_at_s is not None
    if fault is None or fault.target == "broker":
        raise DiedOfItself(f"nobody was killed, and it {ended.outcome}: {ended}")
    if fault.target == "enospc" and ended.disk_full and _only_last_checkpoint_missing(ended):
        return True
    if ended.struck_at_s is None:
        raise DiedOfItself(f"the fault had not struck yet: {ended}")
    for raised in ended.raised:
        if raised.at_s < ended.struck_at_s:
            raise DiedOfItself(f"rank {raised.rank} had failed before the fault struck: {ended}")
        if not raised.of_a_peer:
            raise DiedOfItself(f"rank {raised.rank} failed, and not for want of another rank: {ended}")
    if fault.target == "driver":
        if ended.outcome != DRIVER_LOST:
            raise DiedOfItself(f"the driver was killed and says: {ended}")
        return True
    if ended.first is None or ended.outcome == DRIVER_LOST:
        raise DiedOfItself(f"the driver was lost: {ended}")
    rank, status = ended.first
    if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
        raise DiedOfItself(f"rank {rank} was the first to end, and nobody had killed it: {ended}")
    if fault.target != "all" and rank != fault.rank:
        raise DiedOfItself(f"rank {rank} was the first to be killed instead of rank {fault.rank}: {ended}")
    return True


def _only_last_checkpoint_missing(ended: Ended) -> bool:
    return bool(ended.raised) and all(_NO_LAST_CHECKPOINT in raised.error for raised in ended.raised)


def read_ended(folder: Path, attempt: int, status: dict, struck_at_s: float | None) -> Ended:
    """The records that the driver, the ranks and the fault of an attempt left in the run's folder."""
    raised = [Raised(**json.loads(path.read_text())) for path in folder.glob(f"raised-{attempt}-*.json")]
    marks = {name: folder / f"{name}-{attempt}.json" for name in ("struck", "full")}
    if marks["struck"].exists():
        struck_at_s = json.loads(marks["struck"].read_text())
    first = status.get("first")
    return Ended(
        status.get("outcome", DRIVER_LOST),
        tuple(first) if first else None,
        tuple(sorted(raised, key=lambda one: one.at_s)),
        marks["full"].exists(),
        struck_at_s,
    )
