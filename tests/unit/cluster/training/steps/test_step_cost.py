"""What a step touches does not grow with the known items and users: elements of tensors, bytes of arrays."""

import tracemalloc
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cluster.training.served.answers import Answer
from cluster.training.served.validation import ServedValidation
from model.features import ITEM, USER
from tests.support.unit_runs import QUOTA, open_run, small_config

pytestmark = pytest.mark.usefixtures("one_thread")

FEW, MANY = 2_000, 100_000


_AT_INDICES = ("index", "gather", "scatter", "embedding")
"""Operations that touch of their largest tensor what others name."""


class _Elements(TorchDispatchMode):
    """The elements of the largest tensor that an operation reads or writes whole."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        indexed = name.startswith(_AT_INDICES)
        in_place = name.endswith("_")
        read = () if indexed else (args, kwargs)
        written = () if indexed and in_place else out
        if not func.is_view and name not in ("detach", "alias"):
            sizes = [leaf.numel() for leaf in tree_leaves((read, written)) if isinstance(leaf, torch.Tensor)]
            self.largest = max(self.largest, *sizes, 0)
        return out


@dataclass(frozen=True)
class _Touched:
    tensor_elements: int
    array_bytes: int


class _Answering:
    def ask(self, batch, step):
        return Answer("v00000001", 1, 1)

    def close(self):
        pass


def _run_that_knows(count, *, exact):
    """So many items and users, their rows and histories, and some deleted items."""
    config = small_config()
    limit = 10 * MANY if exact else 1
    config.progressive = replace(config.progressive, exact_max_items=limit, baselines=False)
    run = open_run(config)
    ids = np.arange(1, count + 1)
    run.catalogue.add_items(ids)
    for table in (ITEM, USER):
        run.table.add(np.full(count, table, np.int16), ids)
    run.users.append(
        ids, np.zeros(count, np.int32), np.arange(count + 1), ids % 50 + 1, np.zeros(count, np.int64)
    )
    return run


def _touched(count, *, exact=False):
    run = _run_that_knows(count, exact=exact)
    served = ServedValidation(replace(run.config.progressive, sample_fraction=0.5), lambda: True, _Answering)
    try:
        for _ in range(3):
            _step(run, served)  # room grows by doubling, kernels are compiled
        assert served._live.wait(30)
        tracemalloc.start()
        peaks = []
        for _ in range(3):  # the least of them: something may be read or compiled for the first time
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            _step(run, served)
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
        tracemalloc.stop()
        with _Elements() as elements:
            _step(run, served)
    finally:
        tracemalloc.stop()
        served.close()
    said = served.to_json()
    assert sum(said["sample"]) + said["dropped"] > 0
    return _Touched(elements.largest, min(peaks))


def _step(run, served):
    batch = run.batcher.next_batch(QUOTA)
    prepared = run.train_step.prepare(batch, run.step)
    run.progressive.score(batch, prepared)
    run.train_step.train(prepared, run.step)
    served.offer(batch, run.step, run.events_trained)
    run.count_step(batch, prepared.global_targets.events)


@pytest.fixture(scope="module")
def few():
    return _touched(FEW)


def test_a_step_touches_no_more_with_many_items_and_users_than_with_few(few):
    many = _touched(MANY)
    # 32 candidates more or less; a mask of the catalogue would be 100 kB, a copy of its ids 800 kB.
    assert many.tensor_elements < 1.5 * few.tensor_elements
    assert many.array_bytes < few.array_bytes + 50_000


def test_what_ranks_events_among_all_items_is_found_by_the_same_measure(few):
    exact = _touched(MANY, exact=True)
    assert exact.tensor_elements > MANY > 1.5 * few.tensor_elements
    assert exact.array_bytes > few.array_bytes + 8 * MANY
