"""A checkpoint written from the device is that of the CPU: restored on either, and written again, it is the same."""

import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.checkpoints.parts.row_copies import RowCopies
from cluster.collectives import Collectives
from cluster.training.state.worker_state import checkpointer_of
from tests.device.pretended_device import DeviceTensor, host
from tests.support.checkpointing import save_checkpoint
from tests.support.device_runs import config_of, differing, state_of, train_and_score
from tests.support.unit_runs import CPU, open_run, small_config


def _store(tmp_path, name="checkpoints"):
    return CheckpointStore(tmp_path / name, 3)


@pytest.mark.parametrize("kind", ["adam", "adagrad"])
def test_from_the_device_to_the_cpu_and_back_no_bit_changes(gpu, tmp_path, kind):
    config = config_of("the defaults")
    config.train.row_optimizer = kind
    run = open_run(config, device=gpu.device)
    train_and_score(run, 3)
    saved = state_of(run)
    here = open_run(config, save_checkpoint(run, _store(tmp_path), Collectives()), device=CPU)
    assert differing(saved, state_of(here)) == []
    there = open_run(
        config, save_checkpoint(here, _store(tmp_path, "again"), Collectives()), device=gpu.device
    )
    assert differing(saved, state_of(there)) == []
    assert train_and_score(there, 1)[0]["total"] == pytest.approx(
        train_and_score(here, 1)[0]["total"], rel=1e-5
    )


def test_a_run_goes_on_from_a_checkpoint_as_if_undisturbed_dropout_included(gpu, tmp_path):
    config = small_config(dropout=0.3)
    run = open_run(config, device=gpu.device)
    train_and_score(run, 2)
    checkpoint = save_checkpoint(run, _store(tmp_path), Collectives())
    train_and_score(run, 2)
    resumed = open_run(config, checkpoint, device=gpu.device)
    train_and_score(resumed, 2)
    assert differing(state_of(run), state_of(resumed)) == []


def test_rows_that_a_thread_copies_while_they_are_trained_on_are_those_of_the_commit(gpu, tmp_path):
    config = small_config()
    run = open_run(config, device=gpu.device)
    ids = np.arange(1000, 61_000)
    run.table.add(np.full(ids.shape[0], 2, np.int16), ids)
    checkpointer = checkpointer_of(run, _store(tmp_path), Collectives())
    committed, frozen = None, None
    try:
        checkpointer.begin(run.step)
        while committed is None:
            checkpointer.copy_some()
            if checkpointer.ready:
                committed = checkpointer.advance()
                frozen = frozen if committed else state_of(run)  # the base was done: a snapshot was taken
            if run.step < 4:
                train_and_score(run, 1)
            else:
                time.sleep(0.005)
    finally:
        checkpointer.close()
    assert frozen is not None
    assert differing(frozen, state_of(open_run(config, committed, device=CPU))) == []


class _Stream:
    """A stand-in for a stream of CUDA: notes what is asked of it."""

    def __init__(self, asked):
        self.asked = asked

    def wait_stream(self, other):
        self.asked.append(f"wait for {other}")

    def synchronize(self):
        self.asked.append("synchronize")


def test_slices_on_a_stream_of_their_own_are_the_rows(gpu, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: "training")
    monkeypatch.setattr(
        DeviceTensor, "record_stream", lambda tensor, stream: asked.append("record"), raising=False
    )
    values, state = torch.randn(50, 6).to(gpu.device), torch.randn(50).to(gpu.device)
    copies, rows = RowCopies(_Stream(asked), 40 * 24), np.array([3, 1, 49])
    first = copies.read([values, state], rows)
    second = copies.read([values, state], np.arange(40))
    assert asked == 2 * ["wait for training", *(2 * ["record", "synchronize"])]
    for found, where in ((first, rows), (second, np.arange(40))):  # the buffer was used again for the second
        assert torch.equal(found[0], host(values)[where])
        assert torch.equal(found[1], host(state)[where])
