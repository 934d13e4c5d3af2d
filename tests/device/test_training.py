"""Training puts every tensor where it belongs and gives what the CPU gives, with every option of the loss."""

import numpy as np
import pytest
import torch

from cluster.training.steps.refusal import StepRefused
from model.augmentation import view_factors
from tests.device.pretended_device import DeviceTensor, host
from tests.support.device_runs import (
    VARIANTS,
    config_of,
    differing,
    distance,
    gradients,
    state_of,
    train_and_score,
)
from tests.support.unit_runs import CPU, open_run, small_config

STEPS = 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_option_trains_on_the_device_as_on_the_cpu(gpu, variant):
    config = config_of(variant)
    here, there = open_run(config, device=CPU), open_run(config, device=gpu.device)
    wanted, found = train_and_score(here, STEPS), train_and_score(there, STEPS)
    for step in range(STEPS):
        assert found[step] == pytest.approx(wanted[step], rel=1e-5, abs=1e-6), step
    assert found[-1]["sample"] > 0, "validation that scores nothing proves nothing"
    theirs = gradients(there)
    for name, mine in gradients(here).items():
        if not name.endswith("to_qkv.bias"):  # that of a key bias is rounding error
            assert distance(theirs[name], mine) < 1e-4, name
    assert all(isinstance(p, DeviceTensor) for p in there.model.parameters())
    one, two = state_of(here), state_of(there)
    assert differing({"keys": one["table keys"]}, {"keys": two["table keys"]}) == []
    for name in ("table values", "table first_moment", "table frequency"):
        assert distance(two[name], one[name]) < 1e-4, name


def test_the_same_seed_gives_the_same_run_with_dropout(gpu):
    runs = []
    for _ in range(2):
        run = open_run(small_config(dropout=0.2), device=gpu.device)
        train_and_score(run, STEPS)
        runs.append(state_of(run))
    assert differing(*runs) == []


@pytest.mark.parametrize("kind", ["adam", "adagrad"])
def test_both_row_optimizers_train_on_the_device(gpu, kind):
    config = config_of("the defaults")
    config.train.row_optimizer = kind
    states = []
    for device in (CPU, gpu.device):
        run = open_run(config, device=device)
        train_and_score(run, STEPS)
        states.append(state_of(run))
    for name in (n for n in states[0] if n.startswith("table ")):
        np.testing.assert_allclose(states[1][name].numpy(), states[0][name].numpy(), atol=2e-5, err_msg=name)


def test_a_step_that_is_refused_changes_nothing_on_the_device(gpu):
    run = open_run(config_of("the defaults"), device=gpu.device)
    train_and_score(run, 1)
    batch = run.batcher.next_batch(16)
    prepared = run.train_step.prepare(batch, run.step)
    before = state_of(run)
    prepared.lookup.rows_UD.data[5].fill_(float("nan"))
    with pytest.raises(StepRefused, match="not finite"):
        run.train_step.train(prepared, run.step)
    assert differing(before, state_of(run)) == []


def test_the_views_dropout_is_the_same_on_the_device(gpu):
    start = torch.arange(-300, 300) * 7_919_919_919_919 + 5
    kept = start % 3 > 0
    for ratio in (0.0, 0.3, 0.9):
        wanted = view_factors(start, kept, 24, ratio)
        found = view_factors(start.to(gpu.device), kept.to(gpu.device), 24, ratio)
        assert torch.equal(host(found), wanted)
        assert abs(float((wanted[kept] > 0).float().mean()) - (1 - ratio)) < 0.02
