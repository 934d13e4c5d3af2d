"""Loads the compiled kernels of a step; imported by a process before others are forked from it.

Numba's first kernel costs a process half a second of CPU time, and each further one some milliseconds.
"""

import os

import torch

from tests.support.unit_runs import QUOTA, small_run


def _load() -> None:
    """One step without its backward pass, whose threads no fork survives."""
    torch.set_num_threads(1)
    run = small_run()
    prepared = run.train_step.prepare(batch := run.batcher.next_batch(QUOTA), 0)
    run.progressive.score(batch, prepared)
    run.ledger.add_batch(batch)


if os.environ.get("OMP_NUM_THREADS") == "1":
    _load()
