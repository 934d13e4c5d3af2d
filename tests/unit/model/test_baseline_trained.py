"""Requirements for all trained baselines: packing, ranks, empty batches, and no use of later events."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.baselines.dssm import DSSM
from model.baselines.mind import MIND
from model.baselines.sasrec import SASRec, SASRecBCE
from model.baselines.youtube_dnn import YouTubeDNN
from model.features import KeyCollector, item_inputs, query_inputs

ALL = [YouTubeDNN, DSSM, MIND, SASRec, SASRecBCE]
every_baseline = pytest.mark.parametrize("kind", ALL)


@pytest.fixture
def config(config):
    return replace(config, source_items=0, temperature=0.5)


def _model(kind, config):
    torch.manual_seed(0)
    model = kind(config, 2).train()
    # Larger than the initial values, so that every path carries a visible signal.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


class ThreadedGather:
    """Concatenates what every rank's thread hands in at its n-th call; the graphs stay joined."""

    def __init__(self, ranks):
        self._parts = [None] * ranks
        self._barrier = threading.Barrier(ranks, timeout=20)
        self.calls = [0] * ranks

    def of(self, rank):
        def gather(x):
            self.calls[rank] += 1
            self._parts[rank] = x
            self._barrier.wait()
            whole = torch.cat(list(self._parts))
            self._barrier.wait()
            return whole

        return gather


def _losses_of_ranks(model, steps):
    gather, terms = ThreadedGather(len(steps)), [None] * len(steps)

    def work(rank):
        terms[rank] = model(*steps[rank].arguments(), gather.of(rank), seed=3, step=17)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(steps))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(gather.calls)) == 1
    return terms


def _row_gradients(steps):
    total = {}
    for step in steps:
        tables, ids = step.keys.keys()
        for k, key in enumerate(zip(tables.tolist(), ids.tolist(), strict=True)):
            total[key] = total.get(key, 0) + step.rows_UD.grad[k + 1]
    return total


def _candidates(runs):
    return [*sorted({t for run in runs for t in run.targets}), 900, 901, 903]


@every_baseline
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_the_ranks_losses_and_gradients_add_up_to_those_of_one_process(
    config, runs_of, step_of, kind, similarity
):
    config = replace(config, similarity=similarity)
    runs = runs_of(1, 9, config.history_length)
    items, total = _candidates(runs), sum(run.weight * len(run.targets) for run in runs)
    model = _model(kind, config)
    whole = [step_of(runs, items, items, total, config)]
    expected = _losses_of_ranks(model, whole)[0]
    expected.total.backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    # The second rank has no events, the third no candidates.
    owned = [items[1::2], items[0::2], []]
    order = [item for part in owned for item in part]
    # Three runs, because the fixture's partitions, which name an event, are places in the batch modulo 3.
    shares = [runs[:3], [], runs[3:]]
    split = [step_of(r, o, order, total, config) for r, o in zip(shares, owned, strict=True)]
    terms = _losses_of_ranks(model, split)
    assert expected.main.item() > 0
    assert sum(t.total for t in terms).item() == pytest.approx(expected.total.item(), rel=1e-5)
    sum(t.total for t in terms).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, want[name], rtol=1e-4, atol=1e-5), name
    split_gradients = _row_gradients(split)
    for key, gradient in _row_gradients(whole).items():
        assert torch.allclose(split_gradients[key], gradient, rtol=1e-4, atol=1e-5), key


@every_baseline
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_every_parameter_and_row_gets_a_finite_gradient_from_the_initial_values(
    config, runs_of, step_of, kind, similarity
):
    runs = runs_of(1, 9, config.history_length)
    items = _candidates(runs)
    model = kind(replace(config, similarity=similarity, dropout=0.5), 2).train()
    step = step_of(runs, items, items, 9.0, config)
    model(*step.arguments()).total.backward()
    assert torch.isfinite(step.rows_UD.grad).all()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


@every_baseline
def test_a_rank_with_nothing_has_a_zero_loss_with_a_graph(config, step_of, kind):
    empty = step_of([], [], [], 0.0, config)
    terms = _model(kind, config)(*empty.arguments())
    terms.total.backward()
    assert all(float(value) == 0.0 for value in terms.detached().values())
    assert empty.rows_UD.grad is not None


def _vectors(model, batch, item_categories, key_rows):
    keys = KeyCollector()
    queries = query_inputs(batch, item_categories, keys, model.config)
    return model.encode_queries(key_rows(keys, model.config.dim), queries).vectors_ED


@every_baseline
@torch.no_grad()
def test_a_packed_event_gets_the_vector_that_it_would_get_alone(
    config, runs_of, batch_of, item_categories, key_rows, run_class, kind
):
    model = _model(kind, replace(config, history_length=12)).eval()
    runs = runs_of(6, 5, 6)
    packed = _vectors(model, batch_of(runs), item_categories, key_rows)
    alone = []
    for run in runs:
        for k, target in enumerate(run.targets):
            context = run.context + run.targets[:k]
            single = run_class(run.user, context, [target], run.attributes, run.events_before + k)
            alone.append(_vectors(model, batch_of([single]), item_categories, key_rows))
    assert torch.allclose(packed, torch.cat(alone), atol=1e-5)


@every_baseline
@torch.no_grad()
def test_a_query_does_not_depend_on_its_own_item_or_on_later_ones(
    config, batch_of, item_categories, key_rows, run_class, kind
):
    model = _model(kind, config).eval()

    def first_two(targets):
        batch = batch_of([run_class(1, [4, 5], targets)])
        return _vectors(model, batch, item_categories, key_rows)[:2]

    assert torch.allclose(first_two([7, 8, 9]), first_two([7, 20, 21]), atol=1e-6)
    assert not torch.allclose(first_two([7, 8])[1], first_two([6, 8])[1], atol=1e-3)


@every_baseline
@torch.no_grad()
def test_scores_of_cosine_are_between_minus_one_and_one(config, runs_of, step_of, kind):
    runs = runs_of(1, 9, config.history_length)
    items = _candidates(runs)
    model = _model(kind, config).eval()
    step = step_of(runs, items, items, 9.0, config)
    query = model.encode_queries(step.rows_UD, step.queries).vectors_ED
    scores = model.scores(query, model.encode_items(step.rows_UD, step.items).vectors_CD)
    assert scores.shape == (sum(len(run.targets) for run in runs), len(items))
    assert 0 < scores.abs().max() <= 1 + 1e-5


@every_baseline
@torch.no_grad()
def test_vectors_are_made_without_user_attributes_and_without_categories(config, runs_of, batch_of, kind):
    runs = [replace(run, attributes=()) for run in runs_of(1, 4, 6)]
    model = kind(replace(config, user_id_embedding=False), 0).eval()
    keys = KeyCollector()

    def nothing(ids):
        return np.zeros((ids.shape[0], 0), np.int64)

    queries = query_inputs(batch_of(runs), nothing, keys, model.config)
    items = item_inputs(np.arange(1, 5), nothing, keys)
    rows_UD = torch.randn(1 + len(keys.keys()[1]), config.dim).index_fill_(0, torch.tensor([0]), 0.0)
    scores = model.scores(
        model.encode_queries(rows_UD, queries).vectors_ED, model.encode_items(rows_UD, items).vectors_CD
    )
    assert scores.shape == (sum(len(run.targets) for run in runs), 4)
    assert torch.isfinite(scores).all()
