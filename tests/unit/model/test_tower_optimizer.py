"""The towers' optimizer is bit-identical to torch's AdamW, and does not import torch's compiler."""

import subprocess
import sys

import pytest
import torch

from model.tower_optimizer import TowerOptimizer


def _weights():
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (4,), (2, 2))]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_are_those_of_torchs_adamw_to_the_bit(weight_decay):
    mine, theirs = _weights(), _weights()
    ours, reference = (
        TowerOptimizer(mine, weight_decay),
        torch.optim.AdamW(theirs, weight_decay=weight_decay, fused=True),
    )
    for step in range(6):
        ours.clear_gradients()
        reference.zero_grad()
        assert all(weight.grad is None for weight in mine)
        rate = 0.1 / (step + 1)
        for k, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            # The last one has a gradient only now and then, so its own count of steps.
            if k < 2 or step % 2:
                one.grad = torch.sin(one.detach() * (step + 1))
                other.grad = one.grad.clone()
        for group in reference.param_groups:
            group["lr"] = rate
        ours.step(rate)
        reference.step()
        for one, other in zip(mine, theirs, strict=True):
            assert torch.equal(one, other)
            assert (one in ours.state) == (other in reference.state)
            for name, value in reference.state.get(other, {}).items():
                assert torch.equal(ours.state[one][name], value)
                assert ours.state[one][name].dtype == value.dtype
    assert {int(state["step"]) for state in ours.state.values()} == {6, 3}


def test_flat_gradients_are_the_parameters_gradients_and_zeros_where_there_are_none():
    weights = _weights()
    optimizer = TowerOptimizer(weights)
    weights[0].grad, weights[2].grad = torch.ones(3, 4).T.contiguous().T, torch.full((2, 2), 2.0)
    flat = optimizer.flat_gradients(torch.tensor([7.0]))
    assert flat.tolist() == [1.0] * 12 + [0.0] * 4 + [2.0] * 4 + [7.0]
    flat.mul_(3.0)
    assert [weight.grad.sum().item() for weight in weights] == [36.0, 0.0, 24.0]


def test_a_step_of_a_run_does_not_import_torchs_compiler():
    program = """
import sys
import numpy as np, torch
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.training.state.run import TrainingRun
from streaming.config import StreamConfig
from tests.support.training_batches import random_runs, to_batch
config = FreshetConfig(stream=StreamConfig(user_attributes=[]), device="cpu")
run = TrainingRun.create(config, [0], Collectives(), torch.device("cpu"))
run.train_step.train(run.train_step.prepare(to_batch(random_runs(np.random.default_rng(0), 12, 30)), 0), 0)
assert run.train_step.optimizer.state
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
