"""The processes that build one index version together, each with items of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

Result = TypeVar("Result")


class OtherRankError(RuntimeError):
    """Another rank failed; says which and why."""


class OtherRankStorageError(OSError):
    """The storage failed on another rank; says on which and why."""


class Ranks(Protocol):
    """The interface that building a version needs of its ranks. All make the same calls in the same order."""

    @property
    def rank(self) -> int:
        """Number of this one, from 0."""

    @property
    def world(self) -> int:
        """How many there are."""

    def gather_objects(self, value: object) -> list[Any]:
        """A small Python value of every rank, on every rank, in rank order."""


class OneRank:
    """A single process that does everything."""

    rank = 0
    world = 1

    def gather_objects(self, value: object) -> list[Any]:
        """The value."""
        return [value]


def gather_results(ranks: Ranks, work: Callable[[], Result]) -> list[Result]:
    """Collective. The result of `work` on every rank, in rank order.

    Raises:
        Exception: of this rank's work.
        OtherRankError, OtherRankStorageError: the work of another rank failed, so no rank waits for it.
    """
    failure: Exception | None = None
    problem, result = None, None
    try:
        result = work()
    except Exception as error:
        failure, problem = error, (isinstance(error, OSError), f"rank {ranks.rank}: {error}")
    gathered = ranks.gather_objects((problem, result))
    if failure is not None:
        raise failure
    for told, _ in gathered:
        if told is not None:
            of_storage, message = told
            raise OtherRankStorageError(message) if of_storage else OtherRankError(message)
    return [value for _, value in gathered]


def keep_result(ranks: Ranks, work: Callable[[], Result]) -> Result:
    """Collective. The result of `work` on this rank, which no other one gets; errors as in `gather_results`."""
    kept: list[Result] = []
    gather_results(ranks, lambda: kept.append(work()))
    return kept[0]


def on_first_rank(ranks: Ranks, work: Callable[[], Result]) -> Result:
    """Collective. The result of `work` on rank 0, on every rank; errors as in `gather_results`."""
    first: Any = gather_results(ranks, lambda: work() if ranks.rank == 0 else None)[0]
    result: Result = first
    return result
