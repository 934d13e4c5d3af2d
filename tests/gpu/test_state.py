"""Tables and checkpoints on the device: the rows of the CPU, and the same bits wherever they are restored."""

import time

import numpy as np
import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.collectives import Collectives
from cluster.tables.config import TableConfig
from cluster.tables.row_optimizer import row_optimizer
from cluster.tables.sharded_embedding import ShardedEmbedding
from cluster.training.state.worker_state import checkpointer_of
from model.features import ITEM
from tests.support.checkpointing import save_checkpoint
from tests.support.device_runs import (
    config_of,
    differing,
    distance,
    state_of,
    table_of,
    train_and_score,
    trained_table,
)
from tests.support.unit_runs import CPU, open_run, small_config

LIMITS = {
    "no limits": TableConfig(),
    "admission": TableConfig(admit_after=2),
    "expiry": TableConfig(expire_after_s=2),
    "eviction": TableConfig(max_rows=300, evict="frequency"),
    "all": TableConfig(admit_after=2, max_waiting=200, expire_after_s=3, max_rows=200),
}


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("kind", ["adam", "adagrad"])
def test_a_table_ends_with_the_rows_of_one_on_the_cpu(device, kind, limits):
    sizes = {"dim": 64, "keys": 4000, "steps": 20}
    wanted, found = (table_of(trained_table(where, kind, LIMITS[limits], **sizes)) for where in (CPU, device))
    assert torch.equal(found["keys"], wanted["keys"])
    for name in wanted:
        assert distance(found[name], wanted[name]) < 1e-4, name


def test_growing_holds_one_tensor_twice_not_all_of_them(real_gpu):
    table = ShardedEmbedding(128, Collectives(), row_optimizer("adam"), seed=1, device=real_gpu)
    table.add(np.full(1 << 18, ITEM, np.int16), np.arange(1 << 18))
    table.values_CD.fill_(1.5)
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    table.add(np.full(1, ITEM, np.int16), np.array([1 << 20]))
    assert table.values_CD.shape[0] == (1 << 18) * 3 // 2
    assert bool((table.values_CD[: 1 << 18] == 1.5).all())
    # Values and two moments: what is left is half as large again, and one old tensor beside it.
    assert torch.cuda.max_memory_allocated() <= held * (1.5 + 1 / 3) * 1.05


@pytest.mark.parametrize("kind", ["adam", "adagrad"])
def test_a_checkpoint_is_the_same_bits_on_the_device_and_on_the_cpu(device, tmp_path, kind):
    config = config_of("the defaults")
    config.train.row_optimizer = kind
    run = open_run(config, device=device)
    train_and_score(run, 5)
    saved = state_of(run)
    first, second = (CheckpointStore(tmp_path / name, 3) for name in ("first", "second"))
    here = open_run(config, save_checkpoint(run, first, Collectives()), device=CPU)
    assert differing(saved, state_of(here)) == []
    there = open_run(config, save_checkpoint(here, second, Collectives()), device=device)
    assert differing(saved, state_of(there)) == []
    assert np.isfinite(train_and_score(there, 2)[-1]["total"])


def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit_dropout_included(device, tmp_path):
    config = small_config(dropout=0.3)
    run = open_run(config, device=device)
    train_and_score(run, 4)
    checkpoint = save_checkpoint(run, CheckpointStore(tmp_path, 3), Collectives())
    train_and_score(run, 4)
    resumed = open_run(config, checkpoint, device=device)
    train_and_score(resumed, 4)
    assert differing(state_of(run), state_of(resumed)) == []


def test_rows_that_a_thread_copies_while_they_are_trained_on_are_those_of_the_commit(device, tmp_path):
    config = small_config()
    run = open_run(config, device=device)
    ids = np.arange(1000, 61_000)
    run.table.add(np.full(ids.shape[0], 2, np.int16), ids)
    checkpointer = checkpointer_of(run, CheckpointStore(tmp_path, 3), Collectives())
    committed, frozen = None, None
    try:
        checkpointer.begin(run.step)
        while committed is None:
            checkpointer.copy_some()
            if checkpointer.ready:
                committed = checkpointer.advance()
                frozen = frozen if committed else state_of(run)
            if run.step < 14:
                train_and_score(run, 1)
            else:
                time.sleep(0.002)
    finally:
        checkpointer.close()
    assert frozen is not None
    assert differing(frozen, state_of(open_run(config, committed, device=device))) == []
