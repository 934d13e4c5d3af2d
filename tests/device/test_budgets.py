"""Budgets for one step's use of the device; they may be lowered, never raised.

A launch takes a few microseconds, whatever it computes; a copy from pageable memory blocks the host, and so does a
wait. The aim for a step with validation is 600 launches, 4 copies to the device and 2 waits.
"""

from contextlib import ExitStack
from unittest import mock

import pytest
import torch

from cluster.tables.sharded_embedding import ShardedEmbedding
from cluster.training.steps.progressive import ProgressiveValidation
from cluster.training.steps.train_step import TrainStep
from model.cl_epidtn import CLEPIDTN
from model.tower_optimizer import TowerOptimizer
from tests.support.device_runs import config_of, train_and_score
from tests.support.unit_runs import open_run

WITH_VALIDATION = {"launches": 600, "copies_to": 3, "copies_back": 1, "waits": 1}
WITHOUT = {"launches": 499, "copies_to": 1, "copies_back": 0, "waits": 1}
PHASES = {
    "prepare": (TrainStep, "prepare"),
    "validation": (ProgressiveValidation, "rank"),
    "forward": (CLEPIDTN, "forward"),
    "backward": (torch.Tensor, "backward"),
    "towers": (TowerOptimizer, "step"),
    "tables": (ShardedEmbedding, "apply_gradients"),
}
"""Whose launches are told apart; what remains is the gradients' norm and the terms that are read."""


def _counted(gpu, sample_fraction, quota=16):
    """Counts of one step, and how many of its launches each phase made."""
    config = config_of("two layers", dropout=0.1, contrastive_every=1)
    config.progressive.sample_fraction = sample_fraction
    run = open_run(config, device=gpu.device)
    train_and_score(run, 3, quota)  # rows, towers and optimizer state are there by then
    phases = {}

    def counted(phase, function):
        def call(*arguments, **options):
            before = counts.launches
            result = function(*arguments, **options)
            phases[phase] = phases.get(phase, 0) + counts.launches - before
            return result

        return call

    with gpu.measured() as counts, ExitStack() as stack:
        for phase, (owner, name) in PHASES.items():
            function = counted(phase, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, function))
        train_and_score(run, 1, quota)
    phases["the rest"] = counts.launches - sum(phases.values())
    return counts, phases


def _hold(counted, budget):
    counts, phases = counted
    found = counts.figures()
    assert found["launches"] <= budget["launches"], f"more launches than before: {found}, of which {phases}"
    assert found["launches"] > budget["launches"] - 5, (
        f"fewer launches: lower the budget to {found}, {phases}"
    )
    where = "\n".join(f"{n} {place}" for place, n in sorted(counts.places.items()))
    for kind in ("copies_to", "copies_back", "waits"):
        assert found[kind] <= budget[kind], f"more {kind} than before: {found}\n{where}"
        assert found[kind] >= budget[kind], f"fewer {kind}: lower the budget to {found}"


def test_a_step_with_validation(gpu):
    _hold(_counted(gpu, 0.5), WITH_VALIDATION)


def test_a_step_without_validation(gpu):
    _hold(_counted(gpu, 0.0), WITHOUT)


@pytest.mark.parametrize("quota", [60])
def test_a_step_of_any_size_asks_for_about_as_much(gpu, quota):
    counts, phases = _counted(gpu, 0.5, quota)
    assert counts.launches < WITH_VALIDATION["launches"] + 15, (counts.figures(), phases)
