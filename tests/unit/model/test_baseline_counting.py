"""Counted recommenders on training batches, against recounts in plain Python and against the streaming counters."""

import numpy as np
import pyarrow as pa
import pytest

from model.baselines import sparse
from model.baselines.cooccurrence import Cooccurrence, StreamingCooccurrence
from model.baselines.extra import MissingPackage, evaluation_package
from model.baselines.histories import Histories, ItemIndex
from model.baselines.markov import Markov
from model.baselines.popularity import Popularity

# The runs' items are 1..59; some of them are not in the catalogue, and some of the catalogue is never taken.
ITEM_IDS = np.array([*range(1, 55), 1 << 60, -7], np.int64)
KINDS = [Popularity, Markov, Cooccurrence]
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def parts(runs_of):
    """Three batches' runs of the same users."""
    return [runs_of(seed, 8, 6) for seed in (1, 2, 3)]


@pytest.fixture
def queries(runs_of):
    return runs_of(9, 8, 6)


def _trained(kind, parts, batch_of):
    model = kind(ITEM_IDS)
    for runs in parts:
        assert model.train_on(batch_of(runs)) == {}
    model.end_pass()
    return model


def _events(runs):
    """(what stands before it in its row, the event's item)."""
    for run in runs:
        for k, target in enumerate(run.targets):
            yield run.context + run.targets[:k], target


def _scores(model, runs, batch_of, item_ids=ITEM_IDS):
    return model.scores(model.encode_users(batch_of(runs)), model.encode_items(item_ids))


def test_popularity_is_the_count_of_each_items_events(parts, queries, batch_of):
    taken = [target for runs in parts for _, target in _events(runs)]
    want = [[taken.count(i) if i < 55 else 0 for i in ITEM_IDS]] * len(list(_events(queries)))
    np.testing.assert_array_equal(_scores(_trained(Popularity, parts, batch_of), queries, batch_of), want)


def test_popularity_of_late_counts_an_event_half_after_each_half_life(parts, batch_of):
    day = 86_400_000
    batches, events = [], []
    for n, runs in enumerate(parts):
        batch = batch_of(runs)
        # Each event on a day of its own, batches not in the order of time.
        lengths = [len(run.context) + len(run.targets) for run in runs]
        start = 100 * (1, 3, 2)[n]
        times = [[day * (start + 20 * r + k) for k in range(length)] for r, length in enumerate(lengths)]
        column = batch.schema.get_field_index("times_ms")
        batches.append(batch.set_column(column, batch.schema.field(column), pa.array(times)))
        events += [
            (target, times[r][len(run.context) + k])
            for r, run in enumerate(runs)
            for k, target in enumerate(run.targets)
        ]
    model = Popularity(ITEM_IDS, half_life_days=30)
    for batch in batches:
        model.train_on(batch)
    latest = max(time for target, time in events if target in ITEM_IDS)
    want = [
        sum(0.5 ** ((latest - time) / day / 30) for target, time in events if target == i) for i in ITEM_IDS
    ]
    np.testing.assert_allclose(model.encode_items(ITEM_IDS)[:, 0], want, rtol=1e-6)
    again = Popularity(ITEM_IDS, half_life_days=30)
    again.train_on(batches[0])
    state = again.state()
    again.train_on(batches[1])
    again.load_state(state)
    for batch in batches[1:]:
        again.train_on(batch)
    np.testing.assert_array_equal(again.encode_items(ITEM_IDS), model.encode_items(ITEM_IDS))


def test_markov_counts_the_steps_from_the_last_item_and_breaks_ties_by_popularity(parts, queries, batch_of):
    known = set(ITEM_IDS.tolist())
    taken = [t for runs in parts for _, t in _events(runs) if t in known]
    steps = [(before[-1], t) for runs in parts for before, t in _events(runs) if before and t in known]
    want = [
        [
            (steps.count((before[-1], i)) if before and before[-1] in known else 0)
            + taken.count(i) / (1 + len(taken))
            for i in ITEM_IDS.tolist()
        ]
        for before, _ in _events(queries)
    ]
    got = _scores(_trained(Markov, parts, batch_of), queries, batch_of)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert np.max(want) > 1


def test_no_popularity_outweighs_one_step(run_class, batch_of):
    model = Markov(np.array([1, 2, 3]))
    model.train_on(batch_of([run_class(u, [3], [2]) for u in range(500)]))
    model.train_on(batch_of([run_class(1, [1], [3])]))
    [scores] = _scores(model, [run_class(1, [1], [2])], batch_of, np.array([1, 2, 3]))
    assert scores[2] > 1 > scores[1] > scores[0] == 0


def test_cooccurrence_scores_are_those_of_the_streaming_counter(parts, queries, batch_of):
    streaming, index = StreamingCooccurrence(), ItemIndex(ITEM_IDS)
    for runs in parts:
        histories = Histories.of(batch_of(runs), index)
        known = histories.target_E >= 0
        streaming.update(histories.target_E[known], histories.recent(20)[known])
    recent = Histories.of(batch_of(queries), index).recent(20)
    want = streaming.scores(recent, ITEM_IDS.shape[0])
    got = _scores(_trained(Cooccurrence, parts, batch_of), queries, batch_of)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert want.any()


def test_cooccurrence_reads_as_many_items_as_it_is_told_to(parts, queries, batch_of):
    model = Cooccurrence(ITEM_IDS, recent_items=1)
    for runs in parts:
        model.train_on(batch_of(runs))
    users = model.encode_users(batch_of(queries))
    assert np.diff(users.indptr).max() == 1


@every_kind
def test_items_can_be_asked_for_in_any_order_and_unknown_ones_score_zero(kind, parts, queries, batch_of):
    model = _trained(kind, parts, batch_of)
    asked = np.array([30, 5, 999, 1 << 60], np.int64)
    got, whole = _scores(model, queries, batch_of, asked), _scores(model, queries, batch_of)
    np.testing.assert_array_equal(got[:, [0, 1, 3]], whole[:, [29, 4, 54]])
    assert not got[:, 2:].any()


@every_kind
def test_a_packed_event_gets_the_scores_that_it_would_get_alone(kind, parts, queries, batch_of, run_class):
    model = _trained(kind, parts, batch_of)
    alone = [
        _scores(model, [run_class(run.user, run.context + run.targets[:k], [t], run.attributes)], batch_of)
        for run in queries
        for k, t in enumerate(run.targets)
    ]
    np.testing.assert_array_equal(_scores(model, queries, batch_of), np.concatenate(alone))


@every_kind
def test_the_end_of_a_pass_forgets_nothing(kind, parts, queries, batch_of):
    model = _trained(kind, parts[:2], batch_of)
    model.train_on(batch_of(parts[2]))
    model.end_pass()
    np.testing.assert_array_equal(
        _scores(model, queries, batch_of), _scores(_trained(kind, parts, batch_of), queries, batch_of)
    )


@every_kind
def test_a_state_is_a_copy_that_can_be_gone_back_to(kind, parts, queries, batch_of):
    model = _trained(kind, parts[:2], batch_of)
    before, state = _scores(model, queries, batch_of), model.state()
    model.train_on(batch_of(parts[2]))
    assert (_scores(model, queries, batch_of) != before).any()
    for _ in range(2):
        model.load_state(state)
        np.testing.assert_array_equal(_scores(model, queries, batch_of), before)
        model.train_on(batch_of(parts[2]))


@every_kind
def test_nothing_trained_or_asked_gives_zeros_or_nothing(kind, queries, batch_of):
    model = kind(ITEM_IDS)
    model.train_on(batch_of([]))
    model.end_pass()
    scores = _scores(model, queries, batch_of)
    assert scores.shape == (len(list(_events(queries))), ITEM_IDS.shape[0])
    assert scores.dtype == np.float32
    assert not scores.any()
    assert _scores(model, [], batch_of).shape == (0, ITEM_IDS.shape[0])


def test_histories_hold_the_items_before_each_event_and_each_known_one_once(batch_of, run_class):
    index = ItemIndex(np.array([40, 10, 20, 30]))
    runs = [run_class(1, [10, 20, 10], [30, 99]), run_class(2, [], [40])]
    histories = Histories.of(batch_of(runs), index)
    assert histories.target_E.tolist() == [3, -1, 0]
    assert histories.recent(2).tolist() == [[1, 2], [3, 1], [-1, -1]]
    assert histories.user_E.tolist() == [1, 1, 2]
    events, items = histories.known()
    assert list(zip(events.tolist(), items.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]


def test_pairs_are_counted_the_same_whenever_they_are_merged(monkeypatch):
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 7, (2, 500))
    want = np.zeros((7, 7))
    np.add.at(want, (pairs[0], pairs[1]), 1)
    for limit in (1, 60, 10_000):
        monkeypatch.setattr(sparse, "_PENDING_PAIRS", limit)
        counts = sparse.PairCounts(7)
        for part in np.split(pairs, 10, axis=1):
            counts.add(part[0], part[1])
        np.testing.assert_array_equal(counts.matrix().toarray(), want)


def test_inner_products_of_sparse_vectors_are_those_of_dense_ones():
    rng = np.random.default_rng(0)
    users, items = (rng.normal(size=(n, 9)) * (rng.random((n, 9)) < 0.4) for n in (5, 6))
    for layout in (sparse.sparse.csc_matrix, sparse.sparse.csr_matrix):
        got = sparse.inner_products(sparse.sparse.csr_matrix(users), layout(items))
        np.testing.assert_allclose(got, users @ items.T, rtol=1e-5, atol=1e-6)


def test_a_missing_package_is_named_with_its_extra():
    with pytest.raises(MissingPackage, match=r"no_such_package is not installed.*freshet\[evaluation\]"):
        evaluation_package("no_such_package.part")
