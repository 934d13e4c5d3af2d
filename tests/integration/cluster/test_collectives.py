"""Gathering in one message gives what gathering in two gives, whatever the sizes do."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import torch

from cluster.collectives import Collectives
from tests.support.ranks import run_on_ranks

SIZES = [(3, 5), (3, 6), (0, 2), (0, 0), (40, 1), (50, 50), (1, 0), (41, 51)]


def _gather(rank: int) -> list[bool]:
    comm, same = Collectives(), []
    rng = np.random.default_rng(rank)
    for step, sizes in enumerate(SIZES):
        n = sizes[rank]
        for slot, x in {
            "floats": torch.from_numpy(rng.normal(size=(n, 3)).astype(np.float32)),
            "ints": torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, (n, 2))),
            "bytes": torch.from_numpy(rng.integers(0, 255, n).astype(np.uint8)),
            "transposed": torch.from_numpy(rng.normal(size=(4, n))).T,
        }.items():
            once, sizes_once = comm.gather_rows(x, slot)
            twice, sizes_twice = comm.gather_rows(x)
            same.append(torch.equal(once, twice) and once.dtype == x.dtype and once.shape[1:] == x.shape[1:])
            same.append(sizes_once == sizes_twice == list(SIZES[step]))
    return same


def test_a_gather_in_one_message_equals_one_that_asks_for_the_sizes_first():
    for same in run_on_ranks(_gather, 2):
        assert len(same) == len(SIZES) * 8
        assert all(same)


def _beside(rank: int) -> tuple[list, list, int]:
    comm = Collectives()
    other = comm.beside(timedelta(seconds=60))
    with ThreadPoolExecutor(1) as thread:
        # One rank speaks first in the thread, the other first outside of it: on one connection they would meet.
        early = thread.submit(lambda: other.gather_objects(("thread", rank)))
        if rank == 0:
            early.result(60)
        outside = comm.gather_objects(("loop", rank))
        return outside, early.result(60), Collectives.alone().world


def test_a_thread_of_each_rank_talks_beside_the_loop_and_one_rank_can_be_alone():
    for outside, inside, alone in run_on_ranks(_beside, 2):
        assert outside == [("loop", 0), ("loop", 1)]
        assert inside == [("thread", 0), ("thread", 1)]
        assert alone == 1
