"""Dropout after a resume: the generator continues, or draws new numbers if the generator is another one."""

import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.checkpoints.parts.generators import seed_dropout
from cluster.collectives import Collectives
from cluster.training.state.worker_state import restore_checkpoint
from tests.support.checkpointing import save_checkpoint
from tests.support.unit_runs import open_run, small_config, train_steps

CUDA = torch.device("cuda")
STEPS = 2


@pytest.fixture
def gpu_generator(monkeypatch):
    """The state of a GPU's generator, in a list of one."""
    state = [torch.arange(16, dtype=torch.uint8)]
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: state[0].clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda new, device: state.__setitem__(0, new.clone()))
    return state


def _checkpoint_of(tmp_path, device):
    run = open_run(small_config(dropout=0.3))
    train_steps(run, STEPS)
    run.device = device  # only the generators are asked for by it
    return save_checkpoint(run, CheckpointStore(tmp_path), Collectives())


def _resumed(checkpoint, device):
    run = open_run(small_config(dropout=0.3))
    run.device = device
    restore_checkpoint(run, checkpoint, Collectives())
    return run


def test_a_gpu_run_resumed_on_a_gpu_draws_on_bit_for_bit(tmp_path, gpu_generator):
    saved = gpu_generator[0].clone()
    checkpoint = _checkpoint_of(tmp_path, CUDA)
    gpu_generator[0] = torch.zeros(16, dtype=torch.uint8)
    run = _resumed(checkpoint, CUDA)
    assert torch.equal(gpu_generator[0], saved)
    assert run.notice == ""


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (torch.device("cpu"), CUDA, "resumed on a GPU from a checkpoint written on a CPU"),
        (CUDA, torch.device("cpu"), "resumed on a CPU from a checkpoint written on a GPU"),
    ],
)
def test_on_another_type_of_device_nothing_is_drawn_again_and_it_is_said(
    tmp_path, gpu_generator, before, after, says
):
    checkpoint = _checkpoint_of(tmp_path, before)
    unchanged = gpu_generator[0].clone()
    run = _resumed(checkpoint, after)
    found = torch.get_rng_state()
    assert says in run.notice
    assert torch.equal(gpu_generator[0], unchanged)  # what was saved is of the other device's generator
    seed_dropout(run.config.seed, 0, STEPS)
    assert torch.equal(found, torch.get_rng_state())


def test_a_notice_that_is_there_already_stays(tmp_path, gpu_generator, monkeypatch):
    checkpoint = _checkpoint_of(tmp_path, CUDA)
    config = small_config(dropout=0.3)
    config.stream.user_attributes = ["gender", "age"]
    run = open_run(config)
    restore_checkpoint(run, checkpoint, Collectives())
    assert "age" in run.notice
    assert "dropout draws different masks" in run.notice
