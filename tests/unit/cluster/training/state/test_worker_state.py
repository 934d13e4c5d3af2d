"""A run restored from a checkpoint continues bit-identically, as if it had never stopped.

A run started from another's checkpoint has that run's learned state, but not its positions.
"""

import numpy as np
import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.collectives import Collectives
from cluster.training.state.run import TrainingRun
from streaming.batches.batcher import Batcher
from tests.support.checkpointing import save_checkpoint
from tests.support.memory_source import MemorySource, NoDeadLetters
from tests.support.unit_runs import (
    LOG,
    PARTITIONS,
    POPULATION,
    QUOTA,
    SIGNALS,
    open_run,
    small_config,
    train_steps,
)


def _state(run):
    """Everything that the next step or the proof depends on, as comparable values."""
    size = len(run.table)
    tables, ids = run.table.index.keys()
    by_key = np.lexsort((ids, tables))
    rows = [run.table.values_CD, *run.table.state.values()]
    return {
        "towers": torch.cat([p.detach().flatten() for p in run.model.parameters()]).tolist(),
        "keys": [tables[by_key].tolist(), ids[by_key].tolist()],
        "rows": [tensor[:size][torch.from_numpy(by_key)].tolist() for tensor in rows],
        "frequency": run.table.frequency_C[:size][by_key].tolist(),
        "events_seen": run.train_step.events_seen,
        "curve": run.curve.to_json(),
        "ledger": [ledger.to_table().schema.metadata for ledger in run.ledger.partitions.values()],
        "users": [run.users.to_table(p).to_pydict() for p in run.partitions],
        "items": run.catalogue.item_ids.tolist(),
        "positions": run.source.positions(),
        "counters": (run.step, run.events_trained, run.batcher.rows_read + run.rows_read_before),
    }


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


def test_a_restored_run_has_the_state_that_was_saved(store):
    run = open_run(small_config())
    train_steps(run, 4)
    checkpoint = save_checkpoint(run, store, Collectives())
    assert _state(open_run(small_config(), checkpoint)) == _state(run)
    assert run.curve.to_json()["sample"] != [0.0, 0.0, 0.0]


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped_dropout_included(store):
    run = open_run(small_config(dropout=0.3))
    train_steps(run, 3)
    checkpoint = save_checkpoint(run, store, Collectives())
    train_steps(run, 5)
    torch.manual_seed(999)
    resumed = open_run(small_config(dropout=0.3), checkpoint)
    train_steps(resumed, 5)
    assert _state(resumed) == _state(run)


def test_explicit_negatives_go_on_from_a_checkpoint_as_if_it_had_not_stopped(store):
    run = open_run(small_config(SIGNALS))
    train_steps(run, 3)
    checkpoint = save_checkpoint(run, store, Collectives())
    batches = [run.batcher.next_batch(QUOTA) for _ in range(3)]
    resumed = open_run(small_config(SIGNALS), checkpoint)
    assert [resumed.batcher.next_batch(QUOTA) for _ in range(3)] == batches
    assert any(len(negatives) for negatives in batches[0]["negatives"].to_pylist())
    assert _state(resumed)["users"] == _state(run)["users"]
    used = 3 * PARTITIONS * QUOTA
    ledger = resumed.ledger
    assert (ledger.events, resumed.events_trained) == (used, used - ledger.negatives - ledger.ignored)
    assert min(ledger.negatives, ledger.ignored) > 0


def test_saving_a_checkpoint_does_not_change_the_run(store):
    run, undisturbed = open_run(small_config(dropout=0.3)), open_run(small_config(dropout=0.3))
    states = []
    for one in (run, undisturbed):
        torch.manual_seed(7)
        train_steps(one, 2)
        if one is run:
            save_checkpoint(run, store, Collectives())
        train_steps(one, 2)
        states.append(_state(one))
    assert states[0] == states[1]


def test_a_run_that_is_saved_twice_and_restored_twice_counts_rows_once(store):
    run = open_run(small_config())
    train_steps(run, 2)
    second = open_run(small_config(), save_checkpoint(run, store, Collectives()))
    train_steps(second, 2)
    third = open_run(small_config(), save_checkpoint(second, store, Collectives()))
    assert third.rows_read_before == 4 * PARTITIONS * QUOTA
    assert third.events_trained == third.ledger.events == 4 * PARTITIONS * QUOTA


LEARNT = ("towers", "keys", "rows", "frequency", "events_seen")
ABOUT_THE_STREAM = ("curve", "ledger", "users", "items", "positions")


def test_a_run_started_from_a_checkpoint_has_what_was_learnt_and_its_stream_is_new(store):
    run = open_run(small_config())
    train_steps(run, 4)
    checkpoint = save_checkpoint(run, store, Collectives())
    started, fresh = open_run(small_config(), start=checkpoint), open_run(small_config())
    learnt, found, anew = _state(run), _state(started), _state(fresh)
    assert {name: found[name] for name in LEARNT} == {name: learnt[name] for name in LEARNT}
    assert {name: found[name] for name in ABOUT_THE_STREAM} == {name: anew[name] for name in ABOUT_THE_STREAM}
    assert found["counters"] == (run.step, 0, 0)
    assert started.init_from == {"path": checkpoint.location, "step": 4}


def test_the_second_run_trains_on_with_the_optimizers_of_the_first(store):
    run = open_run(small_config(dropout=0.0))
    train_steps(run, 3)
    checkpoint = save_checkpoint(run, store, Collectives())
    started = open_run(small_config(dropout=0.0), start=checkpoint)
    # The first run reads its log again: the same batches, now with the same histories.
    again = TrainingRun.create(run.config, run.partitions, Collectives(), torch.device("cpu"))
    again.catalogue.apply(POPULATION.catalogue())
    batcher = Batcher(
        run.config.stream, MemorySource(LOG, run.partitions), again.users, again.catalogue, NoDeadLetters()
    )
    for _ in range(3):
        run.train_step.train(run.train_step.prepare(batcher.next_batch(QUOTA), run.step), run.step)
        run.step += 1
    train_steps(started, 3)
    assert {name: _state(started)[name] for name in LEARNT} == {name: _state(run)[name] for name in LEARNT}


def test_dropout_of_a_second_run_is_not_that_of_the_first(store):
    run = open_run(small_config(dropout=0.3))
    first = torch.rand(8)
    open_run(small_config(dropout=0.3))
    assert torch.equal(torch.rand(8), first)
    run.step = 5
    open_run(small_config(dropout=0.3), start=save_checkpoint(run, store, Collectives()))
    assert not torch.equal(torch.rand(8), first)


def test_what_a_run_was_started_from_stays_known_through_its_own_checkpoints(store, tmp_path):
    run = open_run(small_config())
    train_steps(run, 2)
    origin = save_checkpoint(run, store, Collectives())
    started = open_run(small_config(), start=origin)
    train_steps(started, 1)
    own = save_checkpoint(started, CheckpointStore(tmp_path / "other"), Collectives())
    assert own.manifest["init_from"] == {"path": origin.location, "step": 2}
    assert open_run(small_config(), own).init_from == own.manifest["init_from"]
    assert origin.manifest["init_from"] is None
