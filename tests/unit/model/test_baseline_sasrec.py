"""SASRec's states and its binary cross-entropy, against a plain computation of one sequence."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.augmentation import RandomKey
from model.baselines.sasrec import (
    NEGATIVE_DRAW,
    SASRec,
    SASRecBCE,
    draw_negatives,
    one_negative_cross_entropy,
)
from model.features import ITEM
from tests.support.equations import gradients_match


@pytest.fixture
def config(config):
    return replace(config, source_items=0, similarity="dot", temperature=0.7)


def _model(kind, config):
    torch.manual_seed(0)
    model = kind(config, 2).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def _norm(layer, x):
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias


def _linear(layer, x):
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def _block(block, x):
    """One block on one sequence (T, D): every position a softmax over itself and the W − 1 before it."""
    q, k, v = np.split(_linear(block.to_qkv, _norm(block.attention_norm, x)), 3, axis=1)
    bias, mixed = block.bias.bias_HW.detach().numpy(), np.zeros_like(x)
    width = x.shape[1] // block.bias.bias_HW.shape[0]
    for head in range(block.bias.bias_HW.shape[0]):
        part = slice(head * width, (head + 1) * width)
        for t in range(x.shape[0]):
            first = max(0, t - bias.shape[1] + 1)
            logits = np.array(
                [q[t, part] @ k[j, part] / np.sqrt(width) + bias[head, t - j] for j in range(first, t + 1)]
            )
            weights = np.exp(logits - logits.max())
            mixed[t, part] = weights / weights.sum() @ v[first : t + 1, part]
    x = x + _linear(block.to_out, mixed)
    hidden = np.maximum(_linear(block.first, _norm(block.feed_forward_norm, x)), 0)
    return x + _linear(block.second, hidden)


@torch.no_grad()
def test_a_query_is_the_last_state_of_blocks_over_scaled_embeddings(config, runs_of, step_of):
    runs = runs_of(4, 6, config.history_length)
    items = [*sorted({t for run in runs for t in run.targets}), 900]
    step = step_of(runs, items, items, 9.0, config)
    model = _model(SASRec, config)
    tables, ids = step.keys.keys()
    place = {
        i: k + 1 for k, (t, i) in enumerate(zip(tables.tolist(), ids.tolist(), strict=True)) if t == ITEM
    }
    rows = step.rows_UD.detach().numpy().astype(np.float64)
    want = []
    for run in runs:
        x = rows[[place[i] for i in run.context + run.targets]] * np.sqrt(config.dim)
        for block in model.blocks:
            x = _block(block, x)
        states = _norm(model.output_norm, x)
        for k in range(len(run.targets)):
            end = len(run.context) + k
            want.append(states[end - 1] if end else np.zeros(config.dim))
    got = model.encode_queries(step.rows_UD, step.queries).vectors_ED
    np.testing.assert_allclose(got, np.stack(want), rtol=1e-3, atol=1e-4)
    vectors = model.encode_items(step.rows_UD, step.items).vectors_CD
    np.testing.assert_allclose(vectors, rows[[place[i] for i in items]], rtol=1e-6)


@torch.no_grad()
def test_the_loss_is_the_weighted_mean_of_two_logistic_terms_per_event(config, runs_of, step_of):
    runs = runs_of(2, 6, config.history_length)
    items = [*sorted({t for run in runs for t in run.targets}), 900, 901]
    total = sum(run.weight * len(run.targets) for run in runs)
    step = step_of(runs, items, items, total, config)
    model = _model(SASRecBCE, config)
    query = model.encode_queries(step.rows_UD, step.queries).vectors_ED.double().numpy()
    item = model.encode_items(step.rows_UD, step.items).vectors_CD.double().numpy()
    scores, log_q = query @ item.T / config.temperature, step.targets.log_q_M.double().numpy()
    key_E = step.queries.key_E
    uniform = RandomKey(4, 9).uniform(NEGATIVE_DRAW, key_E, torch.zeros_like(key_E)).tolist()
    loss, event, drawn = 0.0, 0, set()
    for run in runs:
        for target in run.targets:
            allowed = [m for m, i in enumerate(items) if i != target and i not in run.context]
            weights = np.exp(-log_q[allowed])
            negative = allowed[int((weights.cumsum() / weights.sum() > uniform[event]).argmax())]
            own = 1 / (1 + np.exp(-scores[event, items.index(target)]))
            other = 1 / (1 + np.exp(-scores[event, negative]))
            loss -= run.weight * (np.log(own) + np.log(1 - other))
            drawn.add(negative)
            event += 1
    assert len(drawn) > 3
    assert float(model(*step.arguments(), seed=4, step=9).main) == pytest.approx(loss / total, rel=1e-4)


@torch.no_grad()
def test_an_event_whose_user_knows_every_negative_has_only_its_positive_term(config, run_class, step_of):
    runs = [run_class(1, [4, 5], [4, 5])]
    step = step_of(runs, [4, 5], [4, 5], 2.0, config)
    model = _model(SASRecBCE, config)
    query = model.encode_queries(step.rows_UD, step.queries).vectors_ED
    item = model.encode_items(step.rows_UD, step.items).vectors_CD
    own = (query * item).sum(1) / config.temperature
    want = torch.nn.functional.softplus(-own).sum() / 2
    torch.testing.assert_close(model(*step.arguments()).main, want)


def test_negatives_are_drawn_from_the_allowed_ones_by_weight_whatever_their_order():
    allowed = torch.tensor([[True, False, True, True, False]]).expand(6000, 5)
    uniform = (torch.arange(6000) + 0.5) / 6000
    ids, weight = torch.tensor([50, 40, 30, 20, 10]), torch.tensor([3.0, 9.0, 2.0, 1.0, 9.0])
    place, found = draw_negatives(allowed, weight, ids, uniform)
    assert found.all()
    assert torch.bincount(place, minlength=5).tolist() == [3000, 0, 2000, 1000, 0]
    order = torch.tensor([3, 1, 4, 0, 2])
    again, _ = draw_negatives(allowed[:, order], weight[order], ids[order], uniform)
    assert torch.equal(ids[order][again], ids[place])


def test_no_allowed_candidate_means_no_negative():
    allowed = torch.tensor([[False, False], [False, True]])
    place, found = draw_negatives(allowed, torch.ones(2), torch.tensor([7, 5]), torch.tensor([0.9, 0.9]))
    assert found.tolist() == [False, True]
    assert place[1] == 1
    nothing = torch.zeros(3, 0, dtype=torch.bool)
    assert not draw_negatives(nothing, torch.zeros(0), torch.zeros(0), torch.zeros(3))[1].any()


def test_the_draws_change_with_the_step_and_the_seed_and_with_nothing_else(config, runs_of, step_of):
    runs = runs_of(2, 8, config.history_length)
    items = [*sorted({t for run in runs for t in run.targets}), *range(900, 940)]
    model = _model(SASRecBCE, config)
    arguments = step_of(runs, items, items, 9.0, config).arguments()
    base = model(*arguments, seed=1, step=2).main
    assert torch.equal(model(*arguments, seed=1, step=2).main, base)
    mirrored = step_of(runs, items[::-1], items[::-1], 9.0, config).arguments()
    torch.testing.assert_close(model(*mirrored, seed=1, step=2).main, base)
    for seed, step in ((1, 3), (2, 2)):
        assert not torch.equal(model(*arguments, seed=seed, step=step).main, base)


def test_the_logistic_terms_stay_finite_for_scores_of_any_size():
    score, weight = torch.tensor([-500.0, 500.0]), torch.tensor([1.0, 3.0])
    loss = one_negative_cross_entropy(score, score, torch.tensor([True, True]), weight, 4.0)
    assert float(loss) == pytest.approx((500.0 + 3 * 500.0) / 4)


def test_the_gradient_of_the_logistic_terms_is_their_slope():
    positive, negative = np.array([1.5, -2.0, 0.3, 4.0]), np.array([0.2, 1.0, -3.0, -0.5])
    found, weight = np.array([True, True, False, True]), np.array([1.0, 0.5, 2.0, 1.5])

    def got(own, other):
        return one_negative_cross_entropy(
            own, other, torch.from_numpy(found), torch.from_numpy(weight), float(weight.sum())
        )

    def want(own, other):
        terms = np.log(1 / (1 + np.exp(-own))) + found * np.log(1 - 1 / (1 + np.exp(-other)))
        return float(-(weight * terms).sum() / weight.sum())

    gradients_match(got, want, positive, negative)
