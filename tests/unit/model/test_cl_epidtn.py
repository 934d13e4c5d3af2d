"""The whole model: packing, gradients that must and must not flow, independence of the number of ranks."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.cl_epidtn import cl_epidtn
from model.features import KeyCollector, query_inputs


def _model(config, seed=0):
    torch.manual_seed(seed)
    model = cl_epidtn(config, 2).train()
    # Larger than the initial values, so that every path carries a visible signal.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


class ThreadedGather:
    """Concatenates what every rank's thread hands in at its n-th call; the graphs stay joined."""

    def __init__(self, ranks):
        self._parts = [None] * ranks
        self._calls = [0] * ranks
        self._barrier = threading.Barrier(ranks, timeout=20)

    def of(self, rank):
        def gather(x):
            self._calls[rank] += 1
            self._parts[rank] = x
            self._barrier.wait()
            whole = torch.cat(list(self._parts))
            self._barrier.wait()
            return whole

        return gather

    @property
    def calls(self):
        return self._calls


def _losses_of_ranks(model, steps, step):
    gather, terms, errors = ThreadedGather(len(steps)), [None] * len(steps), []

    def work(rank):
        try:
            terms[rank] = model(*steps[rank].arguments(), gather.of(rank), seed=3, step=step)
        except Exception as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(steps))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
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
    targets = sorted({t for run in runs for t in run.targets})
    return [*targets, 900, 901, 903]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"contrastive_items": "candidates"},
        {"similarity": "dot"},
        {"similarity": "dot", "contrastive_items": "candidates"},
        {"loss": "pointwise"},
        {"members": 2},
    ],
    ids=str,
)
def test_the_ranks_losses_and_gradients_add_up_to_those_of_one_process(config, runs_of, step_of, settings):
    config = replace(config, temperature=0.5, **settings)
    runs = runs_of(1, 9, config.history_length)
    runs = [replace(run, negatives=(20, 30 + n) if n % 3 else ()) for n, run in enumerate(runs)]
    items, total = _candidates(runs), sum(run.weight * len(run.targets) for run in runs)
    model = _model(config)
    whole = [step_of(runs, items, items, total, config)]
    expected = _losses_of_ranks(model, whole, 18)[0]
    expected.total.backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    # The second rank has no events, the third no candidates.
    owned = [items[1::2], items[0::2], []]
    order = [item for part in owned for item in part]
    shares = [runs[:4], [], runs[4:]]
    split = [step_of(r, o, order, total, config) for r, o in zip(shares, owned, strict=True)]
    terms = _losses_of_ranks(model, split, 18)
    for name, value in expected.detached().items():
        assert float(sum(t.detached()[name] for t in terms)) == pytest.approx(
            float(value), rel=1e-5, abs=1e-6
        )
        assert float(value) > 0
    sum(t.total for t in terms).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, want[name], rtol=1e-4, atol=1e-5), name
    for key, gradient in _row_gradients(whole).items():
        assert torch.allclose(_row_gradients(split)[key], gradient, rtol=1e-4, atol=1e-5), key


def test_the_order_of_the_rows_in_a_batch_changes_no_loss(config, runs_of, step_of):
    runs = runs_of(2, 8, config.history_length)
    items, total = _candidates(runs), float(sum(len(run.targets) for run in runs))
    model = _model(config)
    forward = model(*step_of(runs, items, items, total, config).arguments(), seed=1, step=2)
    mirrored = step_of(runs[::-1], items[::-1], items[::-1], total, config)
    backward = model(*mirrored.arguments(), seed=1, step=2)
    for name, value in forward.detached().items():
        assert float(backward.detached()[name]) == pytest.approx(float(value), rel=1e-5)


def test_the_views_change_with_the_step_and_the_seed_and_with_nothing_else(config, runs_of, step_of):
    runs = runs_of(2, 8, config.history_length)
    items = _candidates(runs)
    model = _model(config)
    arguments = step_of(runs, items, items, 9.0, config).arguments()
    base = model(*arguments, seed=1, step=2)
    assert torch.equal(model(*arguments, seed=1, step=2).total, base.total)
    for other in (model(*arguments, seed=1, step=4), model(*arguments, seed=2, step=2)):
        for name in ("main", "contrastive_sequence", "contrastive_attribute", "contrastive_item"):
            assert not torch.equal(getattr(other, name), getattr(base, name))


def test_a_rank_with_nothing_has_a_zero_loss_with_a_graph(config, step_of):
    model = _model(config)
    empty = step_of([], [], [], 0.0, config)
    terms = model(*empty.arguments())
    terms.total.backward()
    assert {name: float(value) for name, value in terms.detached().items()} == dict.fromkeys(
        terms.detached(), 0.0
    )
    assert empty.rows_UD.grad is not None


@pytest.mark.parametrize("transformer", [True, False])
@torch.no_grad()
def test_a_packed_event_gets_the_vector_that_it_would_get_alone(
    config, runs_of, batch_of, item_categories, key_rows, run_class, transformer
):
    config = replace(config, history_length=12, transformer=transformer)
    model = _model(config).eval()

    def vectors(batch):
        keys = KeyCollector()
        queries = query_inputs(batch, item_categories, keys, config)
        return model.encode_queries(key_rows(keys, config.dim), queries).vectors_ED

    runs = runs_of(6, 5, 6)
    packed = vectors(batch_of(runs))
    alone = []
    for run in runs:
        for k, target in enumerate(run.targets):
            context = run.context + run.targets[:k]
            single = run_class(run.user, context, [target], run.attributes, run.events_before + k)
            alone.append(vectors(batch_of([single])))
    assert torch.allclose(packed, torch.cat(alone), atol=1e-5)


@torch.no_grad()
def test_a_query_does_not_depend_on_its_own_item_or_on_later_ones(
    config, batch_of, item_categories, key_rows, run_class
):
    model = _model(config).eval()

    def first_two(targets):
        keys = KeyCollector()
        queries = query_inputs(batch_of([run_class(1, [4, 5], targets)]), item_categories, keys, config)
        return model.encode_queries(key_rows(keys, config.dim), queries).vectors_ED[:2]

    assert torch.allclose(first_two([7, 8, 9]), first_two([7, 20, 21]), atol=1e-6)
    assert not torch.allclose(first_two([7, 8])[1], first_two([6, 8])[1], atol=1e-3)


@pytest.mark.parametrize("source_items", [1, 3, 20])
@torch.no_grad()
def test_an_event_takes_the_weighted_sources_of_its_last_items_and_of_no_other_user(
    config, runs_of, step_of, item_categories, source_items
):
    config = replace(config, source_items=source_items)
    runs = runs_of(6, 7, 6)
    sources = _model(config).user_tower.sources
    step = step_of(runs, _candidates(runs), _candidates(runs), 9.0, config)
    tables, ids = step.keys.keys()
    row = {k: step.rows_UD[n + 1] for n, k in enumerate(zip(tables.tolist(), ids.tolist(), strict=True))}
    want = []
    for run in runs:
        for k in range(len(run.targets)):
            vector = torch.zeros(config.dim)
            for b, item in enumerate((run.context + run.targets[:k])[::-1][:source_items]):
                parts = [(5, int(c)) for c in item_categories(np.array([item]))[0] if c]
                vector = vector + sources.weight_B[b] * sum(row[key] for key in [(4, item), *parts])
            want.append(vector)
    assert step.queries.history.shared
    assert torch.allclose(sources(step.rows_UD, step.queries), torch.stack(want), atol=1e-5)


def _gradient_keys(step):
    tables, ids = step.keys.keys()
    touched = step.rows_UD.grad[1:].abs().sum(1) > 0
    return {(t, i) for t, i, on in zip(tables.tolist(), ids.tolist(), touched.tolist(), strict=True) if on}


def test_mimic_losses_train_the_augmented_vectors_but_reach_no_row_and_no_other_tower(
    config, runs_of, step_of
):
    runs = runs_of(1, 6, 6)
    items = _candidates(runs)
    model = _model(config)
    step = step_of(runs, items, items, 9.0, config)
    terms = model(*step.arguments())
    (terms.mimic_user + terms.mimic_item + 0.0 * terms.total).backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    trained = (
        "user_tower.attributes.augment.",
        "item_tower.augment.",
        "mimic_user_head.",
        "mimic_item_head.",
    )
    assert moved == {name for name, _ in model.named_parameters() if name.startswith(trained)}
    assert _gradient_keys(step) == set()


def test_the_main_loss_reaches_the_augmenting_networks_and_every_table(config, runs_of, step_of):
    runs = runs_of(1, 6, 6)
    items = _candidates(runs)
    config = replace(config, contrastive_weight=0.0, input_mask_ratio=0.0)
    model = _model(config)
    step = step_of(runs, items, items, 9.0, config)
    model(*step.arguments()).main.backward()
    assert model.item_tower.augment[0].weight.grad.abs().sum() > 0
    assert model.user_tower.attributes.augment[0].weight.grad.abs().sum() > 0
    assert {table for table, _ in _gradient_keys(step)} == {0, 1, 2, 3, 4, 5, 16, 17}


@pytest.mark.parametrize(
    ("term", "tables"),
    [
        ("contrastive_sequence", {0, 1}),
        ("contrastive_attribute", {2, 3, 16, 17}),
        ("contrastive_item", {0, 1}),
    ],
)
def test_a_contrastive_loss_trains_the_tables_that_its_view_reads(config, runs_of, step_of, term, tables):
    runs = runs_of(1, 6, 6)
    items = _candidates(runs)
    model = _model(config)
    step = step_of(runs, items, items, 9.0, config)
    getattr(model(*step.arguments()), term).backward()
    assert {table for table, _ in _gradient_keys(step)} == tables


@pytest.mark.parametrize(
    ("off", "zero_terms"),
    [
        ({"augmented_vectors": False}, {"mimic_user", "mimic_item"}),
        ({"transformer": False}, set()),
        ({"user_id_embedding": False}, set()),
        ({"source_items": 0}, set()),
        ({"source_categories": False}, set()),
        ({"state_skip": 0.0}, set()),
        (
            {"contrastive_weight": 0.0},
            {"contrastive_sequence", "contrastive_attribute", "contrastive_item"},
        ),
        ({"contrastive_sequence_weight": 0.0}, {"contrastive_sequence"}),
        ({"input_mask_ratio": 0.0}, set()),
    ],
)
def test_every_part_can_be_switched_off(config, runs_of, step_of, off, zero_terms):
    settings = replace(config, **off)
    runs = runs_of(1, 6, 6)
    items = _candidates(runs)
    step = step_of(runs, items, items, 9.0, settings)
    terms = _model(settings)(*step.arguments())
    terms.total.backward()
    assert torch.isfinite(terms.total)
    assert torch.isfinite(step.rows_UD.grad).all()
    zero = {name for name, value in terms.detached().items() if float(value) == 0.0}
    assert zero == zero_terms


def test_vectors_have_unit_norm_with_cosine_and_not_with_dot(config, runs_of, step_of):
    for similarity in ("cosine", "dot"):
        settings = replace(config, similarity=similarity)
        runs = runs_of(1, 6, 6)
        step = step_of(runs, _candidates(runs), _candidates(runs), 9.0, settings)
        model = _model(settings).eval()
        norms = torch.cat(
            [
                model.encode_queries(step.rows_UD, step.queries).vectors_ED.norm(dim=1),
                model.encode_items(step.rows_UD, step.items).vectors_CD.norm(dim=1),
            ]
        )
        assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5) == (similarity == "cosine")


def test_evaluation_hides_nothing_and_repeats_itself(config, runs_of, step_of):
    runs = runs_of(1, 6, 6)
    items = _candidates(runs)
    settings = replace(config, dropout=0.5, input_mask_ratio=0.9, contrastive_weight=0.0)
    model = _model(settings).eval()
    arguments = step_of(runs, items, items, 9.0, settings).arguments()
    assert torch.equal(model(*arguments, step=1).total, model(*arguments, step=2).total)
    model.train()
    assert not torch.equal(model(*arguments, step=1).total, model(*arguments, step=2).total)


def test_candidates_that_do_not_match_the_targets_are_refused(config, runs_of, step_of):
    runs = runs_of(1, 6, 6)
    items = _candidates(runs)
    step = step_of(runs, items[:-1], items, 9.0, config)
    with pytest.raises(ValueError, match="encoded"):
        _model(config)(*step.arguments())


def test_one_step_in_k_takes_the_contrastive_losses_at_k_times_their_weight(config, runs_of, step_of):
    runs = runs_of(1, 9, config.history_length)
    items, total = _candidates(runs), sum(run.weight * len(run.targets) for run in runs)
    arguments = step_of(runs, items, items, total, config).arguments()
    every, third = (_model(replace(config, contrastive_every=k)).eval() for k in (1, 3))
    for step in range(4):
        base, terms = (model(*arguments, seed=1, step=step).detached() for model in (every, third))
        factor = 0.0 if step % 3 else 3.0
        for name, value in base.items():
            if name.startswith("contrastive"):
                assert float(value) > 0
                assert float(terms[name]) == pytest.approx(factor * float(value), rel=1e-5)
            elif name != "total":
                assert torch.equal(terms[name], value)
