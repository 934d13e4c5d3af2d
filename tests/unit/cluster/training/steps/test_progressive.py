"""Progressive validation: the sample, what a user had before an event, the curve, and a whole score by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.collectives import Collectives
from cluster.config import FreshetConfig, ProgressiveConfig
from cluster.training.state.run import TrainingRun
from cluster.training.steps.candidates import Runs
from cluster.training.steps.progressive import MOST_BINS, Curve, _seen_before, sample_mask
from model.config import ModelConfig
from model.features import KeyCollector, item_inputs
from streaming.config import StreamConfig
from tests.support.training_batches import Run, random_runs, to_batch


def test_the_curve_adds_each_step_to_the_bin_of_the_events_trained_before_it():
    curve = Curve(bin_events=100)
    curve.add(0, np.array([10.0, 4, 3, 2]))
    curve.add(99, np.array([5.0, 1, 1, 1]))
    curve.add(350, np.array([7.0, 6, 0, 0]))
    assert curve.to_json() == {
        "bin_events": 100,
        "sample": [15, 0, 0, 7],
        "hits": [5, 0, 0, 6],
        "popularity_hits": [4, 0, 0, 0],
        "cooccurrence_hits": [3, 0, 0, 0],
    }


def test_the_curve_of_a_long_run_has_wider_bins_not_more():
    curve, events = Curve(bin_events=10), 10 * MOST_BINS
    for before in range(0, 5 * events, 1000):
        curve.add(before, np.array([4.0, 3, 2, 1]))
    steps = len(range(0, 5 * events, 1000))
    told = curve.to_json()
    assert told["bin_events"] == 80
    assert MOST_BINS / 2 < len(told["sample"]) <= MOST_BINS
    for name, each in zip(
        ("sample", "hits", "popularity_hits", "cooccurrence_hits"), (4, 3, 2, 1), strict=True
    ):
        assert sum(told[name]) == each * steps  # type: ignore[call-overload]
        assert told[name][2000 // 80] == each


def _positions(count, start=0):
    return to_batch(
        [Run(1, [], [1] * count, partition=p, offsets=list(range(start, start + count))) for p in range(4)]
    )


@pytest.mark.parametrize("fraction", [0.02, 0.2, 0.5])
def test_the_sample_holds_its_share_of_the_events(fraction):
    chosen = sample_mask(_positions(10_000), fraction)
    deviation = np.sqrt(fraction * (1 - fraction) / chosen.shape[0])
    assert abs(chosen.mean() - fraction) < 4 * deviation


def test_an_event_is_sampled_by_its_position_alone_and_a_larger_fraction_only_adds():
    whole, part = sample_mask(_positions(1000), 0.3), sample_mask(_positions(400, start=600), 0.3)
    np.testing.assert_array_equal(part.reshape(4, 400), whole.reshape(4, 1000)[:, 600:])
    assert (sample_mask(_positions(1000), 0.4) >= whole).all()
    assert sample_mask(_positions(10), 1.0).all()
    assert not sample_mask(_positions(10), 0.0).any()


@pytest.mark.parametrize(("seed", "share"), [(0, 1.0), (1, 0.5), (2, 0.1), (3, 0.0)])
def test_what_a_user_had_before_an_event_is_context_seen_items_and_the_runs_earlier_targets(seed, share):
    known = 20
    batch = random_runs(np.random.default_rng(seed), rows=10, items=known + 5)
    runs = Runs.of(to_batch(batch))
    expected = []
    for run in batch:
        had = {*run.context, *run.seen}
        for target in run.targets:
            expected.append([i + 1 in had for i in range(known)])
            had.add(target)
    # Ids beyond the known ones stand for items that nobody had heard of: -1 or out of range.
    dense = np.where(runs.items > known, -1, runs.items - 1)
    seen = runs.seen - 1
    wanted_E = np.random.default_rng(seed).random(runs.targets_E.shape[0]) < share
    got = _seen_before(
        wanted_E, dense, runs.item_offsets_N1, runs.context_N, seen, runs.seen_offsets_N1, known
    )
    np.testing.assert_array_equal(got, np.array(expected)[wanted_E])


def test_the_place_of_each_target_is_found_among_the_packed_items():
    batch = random_runs(np.random.default_rng(9), rows=10, items=30)
    runs = Runs.of(to_batch(batch))
    np.testing.assert_array_equal(runs.items[runs.target_places], runs.targets_E)


CONFIG = FreshetConfig(
    stream=StreamConfig(history_length=6, user_attributes=[]),
    model=ModelConfig(
        dim=8, heads=2, layers=1, history_length=6, augmented_dim=4, init_std=0.5, uniform_negatives=5
    ),
    progressive=ProgressiveConfig(sample_fraction=1.0, top_k=3),
    device="cpu",
)


def test_a_score_is_the_rank_of_each_new_item_among_known_unseen_ones_before_the_step():
    run = TrainingRun.create(CONFIG, [0], Collectives(), torch.device("cpu"))
    known = np.arange(1, 16)
    run.catalogue.add_items(known)
    rows = random_runs(np.random.default_rng(3), rows=8, items=15)
    rows += [Run(50, [1, 2], [77, 3]), Run(51, [4, 5], [4])]  # an unheard-of item; a repeated one
    batch = to_batch(rows)
    prepared = run.train_step.prepare(batch, 0)
    totals = run.progressive.score(batch, prepared)
    assert totals[:2].tolist() == _by_hand(run, rows, prepared, known.tolist())
    assert 0 < totals[1] < totals[0]


@torch.no_grad()
def _by_hand(run, rows, prepared, known):
    """(sample, hits), one event at a time."""
    keys = KeyCollector()
    items = item_inputs(np.array(known), run.catalogue.categories, keys)
    vectors = (
        run.model.eval().encode_items(run.table.lookup(*keys.keys(), create=False).rows_UD, items).vectors_CD
    )
    queries = run.model.encode_queries(prepared.lookup.rows_UD, prepared.queries).vectors_ED
    sample, hits, event = 0, 0, 0
    for row in rows:
        had = {*row.context, *row.seen}
        for target in row.targets:
            if target not in had:
                sample += 1
                scores = {
                    i: float(queries[event] @ v) for i, v in zip(known, vectors, strict=True) if i not in had
                }
                better = sum(s > scores[target] for s in scores.values()) if target in scores else np.inf
                hits += better < CONFIG.progressive.top_k
            had.add(target)
            event += 1
    return [sample, hits]


def test_beyond_so_many_items_nothing_is_encoded_but_queries_are_remembered_for_the_index(
    monkeypatch, caplog
):
    config = replace(CONFIG, progressive=replace(CONFIG.progressive, exact_max_items=16))
    run = TrainingRun.create(config, [0], Collectives(), torch.device("cpu"))
    run.catalogue.add_items(np.arange(1, 16))
    first, second, third = (to_batch([Run(50, [1, 2], [item, 3])]) for item in (16, 17, 18))
    assert run.progressive.score(first, run.train_step.prepare(first, 0))[0] == 2
    monkeypatch.delattr("cluster.training.steps.progressive.encode_owned_items")
    run.progressive.recent_queries.clear()
    for batch in (second, third):
        prepared = run.train_step.prepare(batch, 0)
        assert run.progressive.score(batch, prepared).tolist() == [0, 0, 0, 0]
        with torch.no_grad():
            queries = run.model.encode_queries(prepared.lookup.rows_UD, prepared.queries).vectors_ED
        np.testing.assert_array_equal(run.progressive.recent_queries[-1], queries.numpy())
    assert len(run.progressive.recent_queries) == 2
    assert run.progressive.cooccurrence.stopped
    assert caplog.text.count("progressive.exact_max_items=16") == 1


def test_with_a_fraction_of_zero_nothing_is_scored():
    config = FreshetConfig(
        stream=CONFIG.stream, model=CONFIG.model, progressive=ProgressiveConfig(sample_fraction=0.0)
    )
    run = TrainingRun.create(config, [0], Collectives(), torch.device("cpu"))
    batch = to_batch([Run(1, [], [5])])
    assert not run.progressive.score(batch, run.train_step.prepare(batch, 0)).any()
