"""Towers, losses and whole steps on the device against the CPU in the same process."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.augmentation import RandomKey, view_factors
from tests.gpu.conftest import REHEARSAL
from tests.support.device_runs import VARIANTS, config_of, differing, distance, state_of, train_and_score
from tests.support.unit_runs import CPU, QUOTA, open_run, small_config

STEPS, FEW = (5 if REHEARSAL else 50), 4
"""So few events of each partition a step that the log lasts for all steps."""


def _first_step(config, device):
    """Loss terms, gradients of the towers and of the rows, query and item vectors of a run's first step."""
    run = open_run(config, device=device)
    prepared = run.train_step.prepare(run.batcher.next_batch(QUOTA), 0)
    run.model.eval()
    with torch.no_grad():
        rows = prepared.lookup.rows_UD.detach()
        vectors = {
            "queries": run.model.encode_queries(rows, prepared.queries).vectors_ED.cpu(),
            "items": run.model.encode_items(rows, prepared.items).vectors_CD.cpu(),
        }
    losses = run.train_step.train(prepared, 0)
    found = {n: p.grad.cpu() for n, p in run.model.named_parameters() if p.grad is not None}
    return losses, vectors, found | {"rows": prepared.lookup.rows_UD.grad.cpu()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_loss_and_every_gradient_are_the_cpus(device, variant):
    config = config_of(variant, init_std=0.2)
    wanted, found = _first_step(config, CPU), _first_step(config, device)
    assert found[0] == pytest.approx(wanted[0], rel=1e-4, abs=1e-6)
    for mine, theirs in zip(found[1:], wanted[1:], strict=True):
        assert mine.keys() == theirs.keys()
        # A key bias moves no softmax: its gradient is rounding error.
        off = {n: distance(mine[n], theirs[n]) for n in mine if not n.endswith("to_qkv.bias")}
        assert max(off.values()) < 1e-4, sorted(off.items(), key=lambda pair: -pair[1])[:3]


@pytest.mark.parametrize("variant", VARIANTS)
def test_fifty_steps_lose_what_they_lose_on_the_cpu(device, variant):
    runs = [open_run(config_of(variant), device=where) for where in (CPU, device)]
    wanted, found = (train_and_score(run, STEPS, FEW) for run in runs)
    totals = np.array([[step["total"] for step in said] for said in (wanted, found)])
    assert np.isfinite(totals).all()
    np.testing.assert_allclose(totals[1], totals[0], rtol=1e-3)
    here, there = (state_of(run) for run in runs)
    assert differing({"keys": here["table keys"]}, {"keys": there["table keys"]}) == []
    assert distance(there["table values"], here["table values"]) < 1e-2
    assert distance(there["table frequency"], here["table frequency"]) == 0


def test_the_same_seed_gives_the_same_run_bit_for_bit_dropout_included(device):
    states = []
    for _ in range(2):
        run = open_run(small_config(dropout=0.2), device=device)
        train_and_score(run, 8)
        states.append(state_of(run))
    assert differing(*states) == []


@pytest.mark.parametrize(("precision", "tolerance"), [("tf32", 1e-2), ("bf16", 3e-2)])
def test_a_lower_precision_loses_about_what_float32_loses(device, precision, tolerance):
    config = config_of("two layers", dim=64)
    wanted = train_and_score(open_run(config, device=CPU), 5)
    lower = replace(config, precision=precision)
    found = train_and_score(open_run(lower, device=device), 5)
    open_run(config, device=device)  # TF32 is off again
    assert torch.backends.cuda.matmul.allow_tf32 is False
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine["total"] == pytest.approx(theirs["total"], rel=tolerance)


def test_random_views_are_the_same_bits_on_every_device(device):
    entity, place = torch.arange(-500, 500).unsqueeze(1) * 7919, torch.arange(64)
    there = RandomKey(3, 17).uniform(16, entity.to(device), place.to(device))
    assert torch.equal(there.cpu(), RandomKey(3, 17).uniform(16, entity, place))
    start, kept = entity.flatten() * -(2**40) + 5, entity.flatten() % 3 > 0
    dropped = view_factors(start.to(device), kept.to(device), 64, 0.3)
    assert torch.equal(dropped.cpu(), view_factors(start, kept, 64, 0.3))
