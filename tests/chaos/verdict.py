"""Did a group end as its fault ends one? If not, it has found a bug, however well the next group goes on.

A rank that is killed takes the others with it, some by an exception and the rest by the driver, so it is asked who was
first. Times are of one clock for all processes (`time.monotonic`).
"""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.faults import Fault

FAILED, FINISHED, DRIVER_LOST = "failed", "finished", "driver lost"
# Training goes on without a checkpoint when a disk is full, but cannot end without its last one.
_NO_LAST_CHECKPOINT = "the last checkpoint could not be written"


class DiedOfItself(AssertionError):
    """A group did not end by its fault."""


@dataclass(frozen=True)
class Raised:
    """A rank that ended by an exception.

    Attributes:
        rank: which one.
        at_s: when.
        error: its words.
        of_a_peer: whether it came out of a collective, as it does when another rank is gone.
    """

    rank: int
    at_s: float
    error: str
    of_a_peer: bool


@dataclass(frozen=True)
class Ended:
    """What was written down about the end of a group.

    Attributes:
        outcome: `finished`, `failed`, or `driver lost` if the driver could not say.
        first: the first rank that ended otherwise than well, and its wait status.
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
        DiedOfItself: the group ended of something else.
    """
    if ended.outcome == FINISHED:
        # Whoever finishes was not killed: what was sent came too late. Of a broker that comes back nobody dies.
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
    """What the driver, the ranks and the fault of an attempt have left in the run's folder."""
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
