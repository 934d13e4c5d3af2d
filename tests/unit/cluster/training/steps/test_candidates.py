"""The softmax candidates of a step against plain Python."""

from collections import Counter

import numpy as np
import pytest
import torch

from cluster.collectives import Collectives
from cluster.training.steps.candidates import (
    Candidates,
    KnownItems,
    Runs,
    choose_candidates,
    gather_targets,
    target_rows,
    uniform_negatives,
)
from tests.support.training_batches import Run, random_runs, to_batch

KNOWN = np.array([5, -3, 2**40, 17, 9, 1, 88, 4], np.int64)


def _candidates(runs, extra, world=1, seed=0):
    targets = np.unique([t for run in runs for t in run.targets]).astype(np.int64)
    negatives = np.array(sorted(extra), np.int64)
    count = np.union1d(targets, negatives).shape[0]
    return choose_candidates(targets, negatives, np.random.default_rng(seed).integers(0, world, count))


def _to_drop(runs, candidates, past_only=False):
    target_E = torch.from_numpy(candidates.positions(runs.targets_E))
    known = KnownItems.of(runs, candidates, past_only=past_only)
    pairs = list(zip(known.run_P.tolist(), known.place_P.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    return known.to_drop(target_E, candidates.ids_M.shape[0]).numpy()


def _negatives(known, count, **key):
    return uniform_negatives(known.shape[0], known.take, count, **key)


@pytest.mark.parametrize("seed", range(5))
def test_an_event_drops_what_its_user_has_seen_or_takes_in_the_same_run_but_never_its_own_target(seed):
    rng = np.random.default_rng(seed)
    runs = random_runs(rng, rows=12, items=25)
    candidates = _candidates(runs, rng.integers(1, 26, 10).tolist(), world=3, seed=seed)
    expected = [
        [item in {*run.context, *run.targets, *run.seen} and item != target for item in candidates.ids_M]
        for run in runs
        for target in run.targets
    ]
    drop = _to_drop(Runs.of(to_batch(runs)), candidates)
    assert drop.any()
    np.testing.assert_array_equal(drop, expected)


@pytest.mark.parametrize("seed", range(5))
def test_with_past_only_an_item_that_the_user_takes_later_stays_a_negative_until_then(seed):
    rng = np.random.default_rng(seed)
    runs = random_runs(rng, rows=12, items=25)
    candidates = _candidates(runs, rng.integers(1, 26, 10).tolist(), world=3, seed=seed)
    expected = [
        [item in {*run.context, *run.targets[:k], *run.seen} and item != target for item in candidates.ids_M]
        for run in runs
        for k, target in enumerate(run.targets)
    ]
    batch = Runs.of(to_batch(runs))
    drop = _to_drop(batch, candidates, past_only=True)
    np.testing.assert_array_equal(drop, expected)
    everything = _to_drop(batch, candidates)
    assert (everything & drop == drop).all()
    assert everything.sum() > drop.sum()


def test_a_step_without_events_on_this_rank_drops_nothing():
    candidates = Candidates(np.array([3, 4]), np.array([0, 0]), np.array([True, False]))
    for past_only in (False, True):
        assert _to_drop(Runs.of(to_batch([])), candidates, past_only=past_only).shape == (0, 2)


def test_runs_name_the_target_items_and_their_rows():
    runs = Runs.of(to_batch([Run(7, [1, 2], [3]), Run(8, [], [4, 5]), Run(9, [6, 7, 8], [9])]))
    assert runs.targets_E.tolist() == [3, 4, 5, 9]
    assert runs.run_E.tolist() == [0, 1, 1, 2]
    assert runs.context_N.tolist() == [2, 0, 3]


def test_runs_of_a_slice_are_those_of_its_rows_alone():
    runs = [Run(7, [1, 2], [3], seen=[1]), Run(8, [], [4, 5]), Run(9, [6], [7], seen=[6, 4])]
    part = Runs.of(to_batch(runs).slice(1))
    assert part.targets_E.tolist() == [4, 5, 7]
    assert part.items.tolist() == [4, 5, 6, 7]
    assert part.seen.tolist() == [6, 4]
    assert part.run_E.tolist() == [0, 0, 1]


def test_the_targets_of_a_step_are_unique_with_summed_weights_and_the_latest_time():
    rng = np.random.default_rng(3)
    targets, weights = rng.integers(-5, 6, 200), rng.random(200).astype(np.float32)
    expected = Counter()
    for item, weight in zip(targets.tolist(), weights.tolist(), strict=True):
        expected[item] += weight
    agreed = gather_targets(Collectives(), target_rows(targets, weights, 1234))
    assert agreed.ids_T.tolist() == sorted(expected)
    np.testing.assert_allclose(agreed.weight_T, [expected[i] for i in sorted(expected)], rtol=1e-9)
    assert (agreed.events, agreed.latest_ms) == (200, 1234)


def test_a_step_without_events_has_no_targets():
    agreed = gather_targets(Collectives(), target_rows(np.zeros(0, np.int64), np.zeros(0, np.float32), 0))
    assert agreed.ids_T.shape == agreed.weight_T.shape == (0,)
    assert (agreed.events, agreed.latest_ms) == (0, 0)


def test_uniform_negatives_are_distinct_known_items_and_a_function_of_seed_and_step_alone():
    known = np.arange(100, 1100)
    first = _negatives(known, 50, seed=1, step=8)
    assert np.unique(first).shape == first.shape
    assert np.isin(first, known).all()
    np.testing.assert_array_equal(first, _negatives(known, 50, seed=1, step=8))
    for seed, step in ((1, 9), (2, 8)):
        assert not np.array_equal(first, _negatives(known, 50, seed=seed, step=step))


def test_uniform_negatives_draw_each_known_item_equally_often():
    draws, per_step = 4000, 16
    known = np.arange(64) ** 3
    counts = Counter(
        np.concatenate([_negatives(known, per_step, seed=5, step=s) for s in range(draws)]).tolist()
    )
    # An item is in a step's set unless 16 draws with replacement all miss it.
    chance = 1 - (1 - 1 / 64) ** per_step
    expected, deviation = draws * chance, np.sqrt(draws * chance * (1 - chance))
    assert set(counts) == set(known.tolist())
    assert max(abs(c - expected) for c in counts.values()) < 4.5 * deviation


def test_no_negatives_come_from_an_empty_catalogue_or_a_count_of_zero():
    assert _negatives(np.zeros(0, np.int64), 10, seed=1, step=1).shape == (0,)
    assert _negatives(KNOWN, 0, seed=1, step=1).shape == (0,)


def test_a_large_seed_is_as_good_as_any():
    with np.errstate(all="raise"):
        drawn = _negatives(np.arange(1000), 100, seed=2**40 + 12345, step=10**7)
    assert drawn.shape[0] > 80


def test_every_candidate_is_encoded_by_exactly_one_rank_in_gathered_order():
    rng = np.random.default_rng(2)
    runs = random_runs(rng, rows=20, items=60)
    candidates = _candidates(runs, rng.integers(1, 61, 30).tolist(), world=3)
    parts = [candidates.of_rank(rank) for rank in range(3)]
    np.testing.assert_array_equal(np.concatenate([ids for ids, _ in parts]), candidates.ids_M)
    np.testing.assert_array_equal(np.concatenate([flags for _, flags in parts]), candidates.is_target_M)
    assert np.unique(candidates.ids_M).shape == candidates.ids_M.shape
    assert set(candidates.ids_M[candidates.is_target_M]) == {t for run in runs for t in run.targets}


def test_positions_find_each_candidate_and_say_minus_one_for_any_other_item():
    candidates = Candidates(KNOWN, np.zeros(8, np.int64), np.ones(8, np.bool_))
    asked = np.concatenate([KNOWN[::-1], [0, 2**41, -4, 6]])
    place = candidates.positions(asked)
    assert place.tolist() == [7, 6, 5, 4, 3, 2, 1, 0, -1, -1, -1, -1]


def test_positions_among_no_candidates_are_minus_one():
    nothing = Candidates(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_))
    assert nothing.positions(np.array([1, 2])).tolist() == [-1, -1]
