"""Training and query batches: every target once per pass, with its own history."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.protocol.batches import PassSettings, TrainingPasses, query_batches
from cluster.evaluation.protocol.data import prepare
from streaming.config import StreamConfig
from streaming.events.schema import TRAINING_BATCH_SCHEMA
from tests.support.data_tables import random_tables, tables_of
from tests.support.feature_ids import attribute_id

DATA = prepare(random_tables(events=500, users=25), OfflineConfig())


def _passes(data=DATA, **changes):
    arguments = {"batch_targets": 32, "window": 6, "mask_all": True, "first_events": False, "seed": 1}
    return TrainingPasses(data.split, PassSettings(**(arguments | changes)))


def _sequence(user):
    u = int(np.searchsorted(DATA.interactions.user_U, user))
    start, end = DATA.interactions.offset_U1[u : u + 2]
    return DATA.interactions.item_T[start:end].tolist(), int(DATA.split.train_U[u])


@settings(deadline=None, max_examples=30)
@given(
    batch_targets=st.integers(1, 200),
    window=st.integers(1, 12),
    first=st.booleans(),
    number=st.integers(1, 3),
)
def test_a_pass_holds_every_training_target_exactly_once(batch_targets, window, first, number):
    passes = _passes(batch_targets=batch_targets, window=window, first_events=first)
    found, batches = [], list(passes.batches(number))
    for batch in batches:
        assert batch.schema == TRAINING_BATCH_SCHEMA
        for row in batch.to_pylist():
            targets = len(row["items"]) - row["context_length"]
            assert 1 <= targets <= window
            found += [(row["user_id"], row["events_before"] + k) for k in range(targets)]
    wanted = [
        (user, k)
        for user, trained in zip(DATA.interactions.user_U.tolist(), DATA.split.train_U.tolist(), strict=True)
        for k in range(0 if first else 1, trained)
    ]
    assert sorted(found) == wanted
    assert len(found) == passes.targets
    assert len(batches) <= passes.steps()
    sizes = [len(batch.column("weight").flatten()) for batch in batches]
    # Cuts are at multiples of batch_targets, so what one batch has too much the next has too little.
    assert all(abs(size - batch_targets) < window for size in sizes[:-1])


def test_a_rows_context_is_what_came_right_before_it():
    for batch in _passes().batches(1):
        for row in batch.to_pylist():
            items, _ = _sequence(row["user_id"])
            start, context = row["events_before"], row["context_length"]
            assert context == min(start, 6)
            assert row["items"] == items[start - context : start - context + len(row["items"])]
            times = row["times_ms"]
            assert times == sorted(times)


@pytest.mark.parametrize("mask_all", [True, False])
def test_seen_items_are_all_trained_ones_or_those_before_the_row(mask_all):
    for batch in _passes(mask_all=mask_all).batches(1):
        for row in batch.to_pylist():
            items, trained = _sequence(row["user_id"])
            assert row["seen"] == items[: trained if mask_all else row["events_before"]]


def test_attributes_of_training_and_query_rows_are_those_of_their_own_user():
    tables = random_tables(events=200, users=12)
    ages = {user: f"{user % 5}0" for user in range(1, 12)}  # of user 12 nothing is known
    people = pa.table(
        {"user_id": [*ages], "gender": ["M" if u % 3 else "F" for u in ages], "age": [*ages.values()]}
    )
    config = replace(OfflineConfig(), stream=StreamConfig(user_attributes=["gender", "age"]))
    data = prepare(replace(tables, users=people), config)
    interactions, queries = data.interactions, data.split.test
    training = list(_passes(data).batches(1))
    asked = list(query_batches(interactions, queries, 6, 5))
    for batches in (training, asked):
        rows = [row for batch in batches for row in batch.to_pylist()]
        assert {row["user_id"] for row in rows} == {*range(1, 13)}
        for row in rows:
            user = row["user_id"]
            own = interactions.attribute_UF[np.searchsorted(interactions.user_U, user)].tolist()
            assert row["attributes"] == own
            if user == 12:
                assert own == [0, 0]
            else:
                gender = "M" if user % 3 else "F"
                assert own == [attribute_id("gender", gender), attribute_id("age", ages[user])]


def test_passes_differ_in_their_order_and_equal_seeds_give_equal_passes():
    def order(number, seed):
        return [batch.column("user_id").to_pylist() for batch in _passes(seed=seed).batches(number)]

    assert order(1, 1) == order(1, 1)
    assert order(1, 1) != order(2, 1)
    assert order(1, 1) != order(1, 2)


def test_a_query_sees_its_history_and_an_item_that_is_nobodys():
    queries = DATA.split.test
    rows = [row for batch in query_batches(DATA.interactions, queries, 6, 7) for row in batch.to_pylist()]
    assert len(rows) == len(queries)
    for row, user, cut in zip(rows, queries.user_Q, queries.cut_Q, strict=True):
        items, _ = _sequence(row["user_id"])
        assert DATA.interactions.user_U[user] == row["user_id"]
        assert row["items"] == [*items[max(0, cut - 6) : cut], 0]
        assert row["context_length"] == min(cut, 6)
        assert row["events_before"] == cut
        assert row["seen"] == items[:cut]


def test_explicit_negatives_of_a_row_are_the_last_ones_given_before_it():
    # By place: three positives, a skip (item 50), two positives, a skip (51), three positives, a skip (52), the last
    # positive, a skip (53). Whether 52 came before the query's moment the places do not say.
    kinds = [1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 0]
    negatives = iter((50, 51, 52, 53))
    events = [(1, 10 + n if kind else next(negatives), n) for n, kind in enumerate(kinds)]
    action = pa.array(["view" if kind else "skip" for kind in kinds])
    config = replace(OfflineConfig(), stream=StreamConfig(negative_actions=["skip"]))
    data = prepare(tables_of(events, action=action), config)
    passes = _passes(data, batch_targets=1, window=2, mask_all=False, seed=0)
    found = {row["events_before"]: row["negatives"] for b in passes.batches(1) for row in b.to_pylist()}
    assert found == {1: [], 3: [50], 5: [50, 51]}
    [query] = [row for b in query_batches(data.interactions, data.split.test, 2, 9) for row in b.to_pylist()]
    assert query["negatives"] == [50, 51]
