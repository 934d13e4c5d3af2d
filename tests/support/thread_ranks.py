"""Ranks that are threads of one process, for code that needs nothing of its ranks but `gather_objects`."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from retrieval.ranks import OtherRankError, OtherRankStorageError

_WAIT_S = 60


class ThreadRanks:
    """One rank; all of a group share what they gather."""

    def __init__(self, rank: int, world: int, barrier: threading.Barrier, values: list[Any]) -> None:
        self.rank, self.world = rank, world
        self._barrier, self._values = barrier, values

    def gather_objects(self, value: object) -> list[Any]:
        """Copies, as messages are."""
        self._values[self.rank] = value
        self._barrier.wait(_WAIT_S)
        gathered = copy.deepcopy(self._values)
        self._barrier.wait(_WAIT_S)
        return gathered


def on_threads(world: int, work: Callable[[ThreadRanks], Any]) -> list[Any]:
    """The results of `work` in rank order; an error is raised."""
    results = outcomes_on_threads(world, work)
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, OtherRankError | OtherRankStorageError):
            raise result
    return results


def outcomes_on_threads(world: int, work: Callable[[ThreadRanks], Any]) -> list[Any]:
    """The result of `work` on each rank, or the exception that it raised, in rank order."""
    barrier, values = threading.Barrier(world), [None] * world

    def run(rank: int) -> Any:
        try:
            return work(ThreadRanks(rank, world, barrier, values))
        except Exception as error:
            return error

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(run, range(world)))
