"""WALS against the normal equations."""

import warnings

import numpy as np
import pyarrow as pa
import pytest

from model.baselines.wals import WALS

ITEM_IDS = np.array([*range(1, 55), 1 << 60], np.int64)
SETTINGS = {"factors": 6, "regularization": 0.3, "kappa": 5.0, "iterations": 30}


@pytest.fixture
def batch_of(batch_of):
    """As it is elsewhere, but a run has the same places on the log wherever it is, and no other run has them."""
    starts = {}

    def on_the_log(runs):
        first = [starts.setdefault(repr(run), 100 * len(starts)) for run in runs]
        offsets = [
            list(range(start, start + len(run.targets))) for start, run in zip(first, runs, strict=True)
        ]
        batch = batch_of(runs)
        for name, values in (("offset", offsets), ("partition", [start % 3 for start in first])):
            place = batch.schema.get_field_index(name)
            field = batch.schema.field(place)
            batch = batch.set_column(place, field, pa.array(values, field.type))
        return batch

    return on_the_log


@pytest.fixture
def parts(runs_of):
    return [runs_of(seed, 12, 6) for seed in (1, 2, 3)]


def _trained(parts, batch_of, **changed):
    model = WALS(ITEM_IDS, **{**SETTINGS, **changed})
    for runs in parts:
        assert model.train_on(batch_of(runs)) == {}
    model.end_pass()
    return model


def _solved(vectors, confidence):
    """(YᵀY + Σ (c − 1) y yᵀ + λ I)⁻¹ Σ c y, for one row of confidences (0 = not taken)."""
    vectors = vectors.astype(np.float64)
    left = vectors.T @ vectors + SETTINGS["regularization"] * np.eye(vectors.shape[1])
    right = np.zeros(vectors.shape[1])
    for vector, c in zip(vectors, confidence, strict=True):
        if c:
            left += (c - 1) * np.outer(vector, vector)
            right += c * vector
    return np.linalg.solve(left, right)


def test_a_users_vector_solves_the_normal_equations_of_the_history(parts, runs_of, batch_of):
    model, queries = _trained(parts, batch_of), runs_of(9, 8, 6)
    items = model.encode_items(ITEM_IDS)
    want = []
    for run in queries:
        for k in range(len(run.targets)):
            had = set(run.context + run.targets[:k])
            confidence = [1 + SETTINGS["kappa"] if i in had else 0 for i in ITEM_IDS.tolist()]
            want.append(_solved(items, confidence))
    got = model.encode_users(batch_of(queries))
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(model.scores(got, items), got @ items.T)


def test_items_solve_the_normal_equations_of_their_users_once_converged(parts, batch_of):
    """Users from the items, and items from these users: a fixed point, with confidences of summed weights."""
    model = _trained(parts, batch_of, iterations=300)
    items = model.encode_items(ITEM_IDS)
    users = sorted({run.user for runs in parts for run in runs})
    confidence = np.zeros((len(users), ITEM_IDS.shape[0]))
    for runs in parts:
        for run in runs:
            for target in run.targets:
                if target < 55:
                    confidence[users.index(run.user), target - 1] += SETTINGS["kappa"] * run.weight
    confidence += confidence > 0
    user_vectors = np.stack([_solved(items, row) for row in confidence])
    want = np.stack([_solved(user_vectors, column) for column in confidence.T])
    np.testing.assert_allclose(items, want, rtol=0.02, atol=0.01)
    assert np.abs(items).max() > 0.1


def test_what_a_user_took_scores_higher_than_what_nobody_took_with_it(run_class, batch_of):
    model = WALS(np.arange(1, 9), factors=2, regularization=0.1, kappa=10.0)
    model.train_on(batch_of([run_class(u, [], [1, 2, 3] if u % 2 else [5, 6, 7]) for u in range(20)]))
    model.end_pass()
    scores = model.scores(
        model.encode_users(batch_of([run_class(99, [1], [2])])), model.encode_items(np.array([2, 3, 5, 8]))
    )
    assert scores[0, :2].min() > 0.5 > scores[0, 2:].max()
    assert scores[0, 3] == 0.0


def test_items_without_interactions_and_users_without_history_get_zero_vectors(parts, batch_of, run_class):
    model = _trained(parts, batch_of)
    assert not model.encode_items(np.array([1 << 60, 999])).any()
    assert not model.encode_users(batch_of([run_class(1, [], [3]), run_class(2, [999], [3])])).any()


def test_a_second_pass_over_the_same_events_gives_the_same_vectors(parts, batch_of):
    model = _trained(parts, batch_of)
    first = model.encode_items(ITEM_IDS)
    for runs in parts[::-1]:
        model.train_on(batch_of(runs))
    model.end_pass()
    np.testing.assert_array_equal(model.encode_items(ITEM_IDS), first)
    model.end_pass()
    np.testing.assert_array_equal(model.encode_items(ITEM_IDS), first)


def test_it_goes_on_from_all_that_it_has_read_and_no_event_counts_twice(parts, batch_of):
    whole = _trained(parts, batch_of).encode_items(ITEM_IDS)
    model = _trained(parts[:2], batch_of)
    assert not np.allclose(model.encode_items(ITEM_IDS), whole, atol=0.01)
    # The last part is new, the first one is read again, and all is read in another order than before.
    for runs in (parts[2][::-1], parts[0][::-1]):
        model.train_on(batch_of(runs))
    model.end_pass()
    np.testing.assert_array_equal(model.encode_items(ITEM_IDS), whole)


def test_before_the_first_pass_ends_and_for_empty_batches_there_are_zeros_or_nothing(parts, batch_of):
    model = WALS(ITEM_IDS, **SETTINGS)
    model.end_pass()
    model.train_on(batch_of([]))
    model.end_pass()
    events = sum(len(run.targets) for run in parts[0])
    assert model.encode_users(batch_of(parts[0])).tolist() == [[0.0] * 6] * events
    assert model.encode_users(batch_of([])).shape == (0, 6)
    assert not model.encode_items(ITEM_IDS).any()


def test_a_state_is_a_copy_that_can_be_gone_back_to(parts, batch_of):
    model = _trained(parts[:2], batch_of)
    before, state = model.encode_users(batch_of(parts[0])), model.state()
    model.train_on(batch_of(parts[2]))
    model.end_pass()
    assert not np.allclose(model.encode_users(batch_of(parts[0])), before)
    later = model.encode_items(ITEM_IDS)
    for _ in range(2):
        model.load_state(state)
        np.testing.assert_array_equal(model.encode_users(batch_of(parts[0])), before)
        # It also goes back to what had been read by then.
        model.train_on(batch_of(parts[2]))
        model.end_pass()
        np.testing.assert_array_equal(model.encode_items(ITEM_IDS), later)


def test_the_seed_decides_the_factors_and_nothing_is_warned_of(parts, batch_of):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, again, other = (_trained(parts, batch_of, seed=seed, iterations=2) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first.encode_items(ITEM_IDS), again.encode_items(ITEM_IDS))
        assert not np.allclose(first.encode_items(ITEM_IDS), other.encode_items(ITEM_IDS))
