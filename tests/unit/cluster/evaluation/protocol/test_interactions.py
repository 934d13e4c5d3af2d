"""A data set as sequences: order, ties, signals."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from cluster.evaluation.config import OfflineConfig, ProtocolConfig
from cluster.evaluation.protocol.data import prepare, signals
from cluster.evaluation.protocol.protocols import ProtocolError
from streaming.config import StreamConfig
from streaming.events.hashing import hash_texts
from tests.support.data_tables import random_tables, tables_of


def _shuffled(tables, on):
    return prepare(tables, replace(OfflineConfig(), protocol=ProtocolConfig(shuffle_ties=on))).interactions


def test_events_stand_by_user_and_time_and_ties_in_the_order_of_the_file():
    tables = tables_of([(2, 9, 5), (1, 3, 2), (1, 1, 2), (2, 8, 4), (1, 2, 1), (2, 7, 5)])
    found = _shuffled(tables, on=False)
    assert found.user_U.tolist() == [1, 2]
    assert found.item_T.tolist() == [2, 3, 1, 8, 9, 7]
    assert found.length_U.tolist() == [3, 3]


def test_shuffled_ties_change_only_the_order_within_a_users_moment_and_are_the_same_every_time():
    tables = random_tables(events=600)
    plain, shuffled, again = (
        _shuffled(tables, on=False),
        _shuffled(tables, on=True),
        _shuffled(tables, on=True),
    )
    assert plain.item_T.tolist() != shuffled.item_T.tolist()
    assert shuffled.item_T.tolist() == again.item_T.tolist()
    assert plain.time_T.tolist() == shuffled.time_T.tolist()
    user_T = np.repeat(plain.user_U, plain.length_U).tolist()

    def moments(found):
        return Counter(zip(user_T, found.time_T.tolist(), found.item_T.tolist(), strict=True))

    assert moments(plain) == moments(shuffled)


def test_signals_make_positives_weights_and_explicit_negatives_which_know_their_place():
    actions = pa.array(["view", "skip", "buy", "other", "skip", None])
    tables = tables_of([(1, item, item) for item in (1, 2, 3, 4, 5, 6)], action=actions)
    stream = StreamConfig(
        positive_actions=["view", "buy"], negative_actions=["skip"], action_weights=["buy=2"]
    )
    config = replace(OfflineConfig(), stream=stream)
    sign, weight = signals(tables.interactions, config)
    assert sign.tolist() == [1, -1, 1, 0, -1, 1]
    assert weight.tolist() == [1, 1, 2, 1, 1, 1]
    found = prepare(tables, config).interactions
    assert (found.item_T.tolist(), found.weight_T.tolist()) == ([1, 3, 6], [1, 2, 1])
    assert (found.negative_item_X.tolist(), found.negative_place_X.tolist()) == ([2, 5], [1, 2])


def test_a_set_without_actions_and_values_is_all_positives():
    sign, weight = signals(tables_of([(1, 1, 1), (1, 2, 2)]).interactions, OfflineConfig())
    assert (sign.tolist(), weight.tolist()) == ([1, 1], [1.0, 1.0])


def test_categories_and_attributes_reach_the_catalogue():
    data = prepare(random_tables(), OfflineConfig())
    assert (np.count_nonzero(data.catalogue.categories(data.item_ids), axis=1) == 2).all()
    gender = data.interactions.attribute_UF[:, 0]
    assert len(set(gender.tolist())) == 2
    assert (data.interactions.attribute_UF[:, 1:] == 0).all()


def test_the_fingerprint_follows_every_value_and_nothing_else():
    tables = random_tables()
    assert tables.fingerprint() == random_tables().fingerprint()
    titles = tables.items.set_column(1, "title", pa.array(["x"] * tables.items.num_rows))
    times = tables.interactions.column("timestamp_ms").to_numpy().copy()
    times[7] += 1
    later = tables.interactions.set_column(2, "timestamp_ms", pa.array(times))
    prints = {
        tables.fingerprint(),
        replace(tables, items=titles).fingerprint(),
        replace(tables, interactions=later).fingerprint(),
        replace(tables, users=tables.users.slice(1)).fingerprint(),
    }
    assert len(prints) == 4


def test_ids_that_are_texts_are_those_of_the_stream():
    tables = tables_of([(1, 5, 1), (1, 6, 2), (1, 5, 3)])
    texts = {
        "user_id": pa.array(["anna"] * 3),
        "item_id": pa.array(["a", "b", "a"]),
        "timestamp_ms": tables.interactions["timestamp_ms"],
    }
    found = prepare(replace(tables, interactions=pa.table(texts)), OfflineConfig()).interactions
    assert found.user_U.tolist() == hash_texts(pa.array(["anna"])).tolist()
    assert found.item_T.tolist() == hash_texts(pa.array(["a", "b", "a"])).tolist()


def test_ids_of_digits_and_of_other_types_are_those_of_the_stream_too():
    tables = tables_of([(1, 5, 1), (1, 6, 2), (1, 7, 3)])
    columns = {"user_id": pa.array(["1001"] * 3, pa.string_view()), "item_id": pa.array([7.0, 8.0, 9.0])}
    texts = pa.table(columns | {"timestamp_ms": tables.interactions["timestamp_ms"]})
    found = prepare(replace(tables, interactions=texts), OfflineConfig()).interactions
    assert (found.user_U.tolist(), found.item_T.tolist()) == ([1001], [7, 8, 9])


@pytest.mark.parametrize("wrong", [[7.5, 8.0], [True, False], [2.0**60, 1.0]])
def test_what_is_no_id_is_refused_with_the_column(wrong):
    tables = tables_of([(1, 5, 1), (1, 6, 2)])
    table = tables.interactions.set_column(1, "item_id", pa.array(wrong))
    with pytest.raises(ValueError, match="item_id must hold integers or texts, not"):
        prepare(replace(tables, interactions=table), OfflineConfig())


def test_missing_weights_are_1_and_empty_actions_are_missing_ones():
    weight = pa.array([None, 2.5], pa.float32())
    tables = tables_of([(1, 5, 1), (1, 6, 2)], action=pa.array(["", "view"]), weight=weight)
    config = replace(OfflineConfig(), stream=StreamConfig(positive_actions=["view"]))
    sign, found = signals(tables.interactions, config)
    assert (sign.tolist(), found.tolist()) == ([1, 1], [1.0, 2.5])


@pytest.mark.parametrize("weight", [-1.0, 0.0, 1e30, float("nan"), float("inf")])
def test_a_weight_that_the_stream_would_refuse_is_refused_with_the_settings(weight):
    tables = tables_of([(1, 5, 1), (1, 6, 2)], weight=pa.array([1.0, weight], pa.float32()))
    with pytest.raises(ProtocolError, match=r"1 of 2 events have a weight .* 1000, .*stream\.max_weight"):
        prepare(tables, OfflineConfig())
