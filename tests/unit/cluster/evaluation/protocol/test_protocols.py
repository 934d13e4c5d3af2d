"""Training and test events: training never uses the test, nor, under `temporal`, anything later."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.evaluation.config import OfflineConfig, ProtocolConfig
from cluster.evaluation.protocol.batches import PassSettings, TrainingPasses, query_batches
from cluster.evaluation.protocol.data import EvaluationData, prepare
from cluster.evaluation.protocol.protocols import ProtocolError, moments
from streaming.config import StreamConfig
from tests.support.data_tables import tables_of

EVENT = st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(0, 40).map(lambda t: t * 43_200_000))
EVENTS = st.lists(EVENT, min_size=5, max_size=60)
ACTIONS = st.sampled_from(["view", "view", "skip"])


def _data(events, actions=None, **protocol) -> EvaluationData:
    config = replace(
        OfflineConfig(),
        stream=StreamConfig(negative_actions=["skip"]),
        protocol=ProtocolConfig(**protocol),
    )
    columns = {"action": pa.array(actions)} if actions else {}
    return prepare(tables_of(events, **columns), config)


def _targets(queries):
    """Targets of each query by user index."""
    parts = np.split(queries.target_G, queries.target_offset_Q1[1:-1])
    return dict(zip(queries.user_Q.tolist(), [part.tolist() for part in parts], strict=True))


def _trained_rows(data):
    passes = TrainingPasses(data.split, PassSettings(7, 5, mask_all=True, first_events=True, seed=0))
    return [row for batch in passes.batches(1) for row in batch.to_pylist()]


def test_leave_one_out_tests_the_last_event_and_validates_the_one_before():
    events = [(1, item, item) for item in (10, 11, 12, 13)] + [(2, 20, 5), (2, 21, 6)] + [(3, 30, 1)]
    split = _data(events).split
    assert split.train_U.tolist() == [2, 2, 1]
    assert _targets(split.validation) == {0: [12]}
    assert _targets(split.test) == {0: [13]}
    assert (split.validation.cut_Q.tolist(), split.test.cut_Q.tolist()) == ([2], [3])


def test_leave_one_out_of_users_with_two_events_is_refused_by_its_setting():
    with pytest.raises(ProtocolError, match=r"protocol\.kind"):
        _data([(1, 1, 1), (1, 2, 2)])


def test_a_data_set_without_a_positive_is_refused_by_the_settings_that_say_what_one_is():
    config = replace(OfflineConfig(), stream=replace(OfflineConfig().stream, positive_actions=["buy"]))
    tables = tables_of([(1, 1, 1), (1, 2, 2)], action=pa.array(["view", "view"]))
    with pytest.raises(ProtocolError, match=r"none of the 2 events is a positive.*stream\.positive_actions"):
        prepare(tables, config)


@settings(deadline=None, max_examples=60)
@given(EVENTS)
def test_leave_one_out_trains_no_event_of_validation_or_test_and_every_other_one(events):
    try:
        data = _data(events)
    except ProtocolError:
        return
    by_user = {}
    for user, item, _ in sorted(events, key=lambda event: event[2]):
        by_user.setdefault(user, []).append(item)
    trained = {}
    for row in _trained_rows(data):
        places = trained.setdefault(row["user_id"], {})
        for k, item in enumerate(row["items"][row["context_length"] :]):
            places[row["events_before"] + k] = item
        assert set(row["seen"]) <= set(by_user[row["user_id"]][: max(len(by_user[row["user_id"]]) - 2, 2)])
    for user, items in by_user.items():
        kept = items[:-2] if len(items) >= 3 else items
        assert trained.get(user, {}) == dict(enumerate(kept))


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(EVENT, ACTIONS), min_size=5, max_size=60),
    st.booleans(),
    st.sampled_from(["next", "day", "all"]),
)
def test_temporal_no_training_event_history_or_explicit_negative_is_at_or_after_the_moment(
    drawn, shuffle, targets
):
    actions = [action for _, action in drawn]
    # Each skip is of an item of its own, which tells its time.
    everything = [
        (user, item if action == "view" else 1000 + n, time)
        for n, ((user, item, time), action) in enumerate(drawn)
    ]
    events = [event for event in everything if event[1] < 1000]
    skipped = {item: (user, time) for user, item, time in everything if item >= 1000}
    try:
        data = _data(
            everything,
            actions,
            kind="temporal",
            shuffle_ties=shuffle,
            targets=targets,
            validation_from="0.6",
            test_from="0.8",
        )
    except ProtocolError:
        return
    validation_ms, test_ms, end_ms = moments(
        data.interactions.time_T, ProtocolConfig("temporal", validation_from="0.6", test_from="0.8")
    )
    for row in _trained_rows(data):
        assert max(row["times_ms"]) < validation_ms
        for user, time in (skipped[item] for item in row["negatives"]):
            assert user == row["user_id"]
            assert time <= row["times_ms"][row["context_length"]]
    for queries, start_ms, stop_ms in (
        (data.split.validation, validation_ms, test_ms),
        (data.split.test, test_ms, end_ms),
    ):
        users = data.interactions.user_U[queries.user_Q]
        for batch in query_batches(data.interactions, queries, 5, 1000):
            for row, user, wanted in zip(batch.to_pylist(), users, _targets(queries).values(), strict=True):
                history = row["times_ms"][: row["context_length"]]
                assert all(time < start_ms for time in history)
                assert all(skipped[item][0] == user for item in row["negatives"])
                assert all(skipped[item][1] < start_ms for item in row["negatives"])
                before = {item for u, item, time in events if u == user and time < start_ms}
                assert set(row["seen"]) == before
                later = {item for u, item, time in events if u == user and start_ms <= time < stop_ms}
                assert wanted
                assert set(wanted) <= later - before
                assert len(wanted) == len(set(wanted))


def test_temporal_targets_are_the_next_event_or_day_or_all_that_the_user_has_not_had():
    day = 86_400_000
    training = [(1, 1, 0), (2, 1, 1), (2, 2, 2)]
    validation = [(1, 2, 10 * day)]
    test = [(1, 1, 20 * day), (1, 5, 20 * day + 1), (1, 6, 20 * day + 2), (1, 7, 21 * day), (2, 3, 22 * day)]
    dates = {"validation_from": "1970-01-05", "test_from": "1970-01-15"}
    found = {
        targets: _targets(
            _data([*training, *validation, *test], kind="temporal", targets=targets, **dates).split.test
        )
        for targets in ("next", "day", "all")
    }
    # The next event of user 1 is an item that it has had, so there is nothing to predict.
    assert found == {"next": {1: [3]}, "day": {0: [5, 6], 1: [3]}, "all": {0: [5, 6, 7], 1: [3]}}


def test_temporal_dates_and_shares_name_the_same_moment():
    events = [(user, item, 1000 * item) for user in (1, 2) for item in range(10)]
    by_share = _data(events, kind="temporal", validation_from="0.5", test_from="0.8").split
    by_date = _data(
        events, kind="temporal", validation_from="1970-01-01T00:00:05", test_from="1970-01-01T00:00:08"
    ).split
    assert by_share.train_U.tolist() == by_date.train_U.tolist() == [5, 5]
    assert by_share.test.target_G.tolist() == by_date.test.target_G.tolist() == [8, 8]


@pytest.mark.parametrize(
    ("moments", "message"),
    [
        ({"validation_from": "0.9", "test_from": "0.5"}, "protocol.validation_from, protocol.test_from"),
        ({"validation_from": "1960-01-01", "test_from": "0.5"}, "protocol.validation_from"),
        ({"validation_from": "0.5", "test_from": "2100-01-01"}, "protocol.test_from"),
    ],
)
def test_moments_that_leave_nothing_to_train_or_test_are_refused_by_their_setting(moments, message):
    with pytest.raises(ProtocolError, match=message.replace(".", r"\.")):
        _data([(1, item, 1000 * item) for item in range(10)], kind="temporal", **moments)


@pytest.mark.parametrize("text", ["yesterday", "1.5", "0", ""])
def test_a_moment_is_a_date_or_a_share(text):
    with pytest.raises(ValueError, match=r"protocol\.test_from"):
        ProtocolConfig(test_from=text)
