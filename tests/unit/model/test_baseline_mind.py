"""MIND: the routing step by step in plain loops, the choice in training, the maximum in retrieval."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.baselines.mind import MIND, last_tokens, squash
from model.features import KeyCollector, query_inputs


@pytest.fixture
def config(config):
    return replace(config, source_items=0, similarity="dot", temperature=0.7, logq_strength=1.0)


def _model(config, seed=0):
    torch.manual_seed(seed)
    model = MIND(config, 2).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def _routed(vectors, bilinear, initial, iterations):
    """Algorithm 1 of the paper: interests (K, D) of one history, the last item first."""
    mapped = [bilinear @ vector for vector in vectors]
    logits = initial[:, : len(mapped)].astype(np.float64).copy()
    for iteration in range(iterations):
        interests = []
        for k in range(logits.shape[0]):
            total = np.zeros(bilinear.shape[0])
            for j, vector in enumerate(mapped):
                total += np.exp(logits[k, j]) / np.exp(logits[:, j]).sum() * vector
            norm = np.linalg.norm(total)
            interests.append(norm**2 / (1 + norm**2) * total / norm if norm else total)
        if iteration < iterations - 1:
            for k, interest in enumerate(interests):
                for j, vector in enumerate(mapped):
                    logits[k, j] += interest @ vector
    return np.stack(interests)


def test_there_are_four_interests_after_three_iterations_unless_told_otherwise(config):
    routing = MIND(config, 2).routing
    assert (routing.initial_KW.shape[0], routing.iterations) == (4, 3)


@torch.no_grad()
@pytest.mark.parametrize("iterations", [1, 3])
def test_interests_are_those_of_the_papers_algorithm(config, iterations):
    torch.manual_seed(1)
    long_enough = replace(config, history_length=12)
    routing = MIND(long_enough, 2, interests=3, iterations=iterations).routing
    item_ID = torch.randn(9, config.dim).index_fill_(0, torch.tensor([0]), 0.0)
    # Short histories are routed apart from long ones.
    histories = [[4, 8, 1, 2, 4], [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3], [], [5], [1, 2, 3, 4, 5, 6, 7, 8, 8]]
    token_EW = torch.tensor([history + [0] * (12 - len(history)) for history in histories])
    got = routing(item_ID, token_EW)
    for e, tokens in enumerate(token_EW.tolist()):
        vectors = [item_ID[t].double().numpy() for t in tokens if t]
        bilinear = routing.bilinear.weight.double().numpy()
        want = _routed(vectors, bilinear, routing.initial_KW.numpy(), iterations)
        np.testing.assert_allclose(got[e], want, rtol=1e-4, atol=1e-5)
    assert not got[2].any()


def test_the_initial_logits_are_fixed_numbers_that_are_not_trained(config):
    first, second = _model(config, 0), _model(config, 1)
    assert torch.equal(first.routing.initial_KW, second.routing.initial_KW)
    assert "routing.initial_KW" not in dict(first.named_parameters())
    assert first.routing.initial_KW.shape == (4, config.history_length)


def test_squash_keeps_the_direction_and_bounds_the_length_and_has_a_gradient_at_zero():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    y = squash(x)
    torch.testing.assert_close(y[0], torch.tensor([0.6, 0.8]) * 25 / 26)
    assert not y[1].any()
    y.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_the_items_before_an_event_come_last_first_and_from_no_other_sequence(
    config, batch_of, run_class, item_categories
):
    runs = [run_class(1, [11, 12], [13, 14]), run_class(2, [21], [22]), run_class(3, [], [31])]
    keys = KeyCollector()
    queries = query_inputs(batch_of(runs), item_categories, keys, config)
    ids = np.concatenate([[0], keys.keys()[1]])
    of_token = ids[queries.item_row_I.numpy()]
    got = of_token[last_tokens(queries, 3).numpy()]
    assert got.tolist() == [[12, 11, 0], [13, 12, 11], [21, 0, 0], [0, 0, 0]]


@torch.no_grad()
def test_the_loss_is_the_softmax_of_the_interest_that_fits_the_target_best(config, runs_of, step_of):
    runs = runs_of(3, 6, config.history_length)
    items = [*sorted({t for run in runs for t in run.targets}), 900, 901]
    total = sum(run.weight * len(run.targets) for run in runs)
    step = step_of(runs, items, items, total, config)
    model = _model(config)
    interests = model.encode_queries(step.rows_UD, step.queries).vectors_ED.double().numpy()
    item = model.encode_items(step.rows_UD, step.items).vectors_CD.double().numpy()
    log_q, drop = step.targets.log_q_M.double().numpy(), step.targets.drop_EM.numpy()
    loss, event, chosen = 0.0, 0, set()
    for run in runs:
        for target in run.targets:
            place = items.index(target)
            vectors = interests[event].reshape(4, config.dim)
            best = int(np.argmax(vectors @ item[place]))
            logits = vectors[best] @ item.T / config.temperature - log_q
            logits[drop[event]] = -np.inf
            loss += run.weight * (np.log(np.exp(logits).sum()) - logits[place])
            chosen.add(best)
            event += 1
    assert len(chosen) > 1
    assert model(*step.arguments()).main.item() == pytest.approx(loss / total, rel=1e-4)


@torch.no_grad()
def test_a_score_is_the_largest_inner_product_over_the_interests(config):
    query, item = torch.randn(5, 4 * config.dim), torch.randn(7, config.dim)
    want = np.stack([[max(q.reshape(4, -1) @ i) for i in item.numpy()] for q in query.numpy()])
    np.testing.assert_allclose(MIND(config, 2).scores(query, item), want, rtol=1e-5)


@torch.no_grad()
def test_each_interest_has_unit_norm_with_cosine(config, runs_of, step_of):
    config = replace(config, similarity="cosine")
    runs = runs_of(3, 6, config.history_length)
    step = step_of(runs, [900], [900, *{t for run in runs for t in run.targets}], 9.0, config)
    vectors = _model(config).encode_queries(step.rows_UD, step.queries).vectors_ED
    norms = vectors.unflatten(1, (4, config.dim)).norm(dim=2)
    torch.testing.assert_close(norms, torch.ones_like(norms))
