import threading
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from streaming.config import StreamConfig
from streaming.events.partitioner import partition_of_texts
from streaming.producing.producer import EventProducer, _arrow_messages, _by_partition, _json_messages
from streaming.producing.replay import _paced, in_time_order, replay


def batch(**columns) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


def events(count: int) -> pa.RecordBatch:
    times = [1000 * n for n in range(1, count + 1)]
    return batch(user_id=[n % 7 for n in range(count)], item_id=list(range(count)), timestamp_ms=times)


def test_events_are_sorted_by_time_and_ties_are_drawn_from_the_seed():
    table = pa.table(
        {"user_id": [1] * 40, "item_id": list(range(40)), "timestamp_ms": [2000] * 20 + [1000] * 20}
    )
    first, again, other = (in_time_order(table, seed)["item_id"].to_pylist() for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert sorted(first[:20]) == list(range(20, 40))
    assert first[:20] != sorted(first[:20])


def test_columns_that_are_no_event_fields_are_left_out():
    table = pa.table({"user_id": [1], "pos": [0], "item_id": [2], "timestamp_ms": [3], "value": [1.0]})
    assert in_time_order(table, 0).schema.names == ["user_id", "item_id", "timestamp_ms", "value"]


def test_no_events_are_an_empty_batch():
    table = pa.table(
        {"user_id": pa.array([], pa.int64()), "item_id": [], "timestamp_ms": pa.array([], pa.int64())}
    )
    assert in_time_order(table, 0).num_rows == 0


def test_each_partition_gets_its_users_events_in_order():
    seen = {}
    for partition, rows in _by_partition(events(100), 3):
        assert rows["item_id"].to_pylist() == sorted(rows["item_id"].to_pylist())
        seen |= dict.fromkeys(rows["user_id"].to_pylist(), partition)
    assert sum(rows.num_rows for _, rows in _by_partition(events(100), 3)) == 100
    assert len(seen) == 7


def test_text_ids_are_partitioned_by_their_text():
    rows = batch(user_id=["ann", "bob", "eve"], item_id=["x", "y", "z"], timestamp_ms=[1, 2, 3])
    expected = dict(zip(["ann", "bob", "eve"], partition_of_texts(rows["user_id"], 5).tolist(), strict=True))
    found = {user: p for p, part in _by_partition(rows, 5) for user in part["user_id"].to_pylist()}
    assert found == expected


def test_arrow_messages_stay_below_half_the_limit_and_lose_no_row():
    messages = list(_arrow_messages(events(1000), 10_000))
    assert all(len(message.value) <= 5000 for message in messages)
    assert sum(message.rows for message in messages) == 1000


def test_json_messages_are_keyed_by_the_user_and_leave_nulls_out():
    rows = batch(user_id=[12], item_id=[5], timestamp_ms=[7], action=pa.array([None], pa.string()))
    [message] = _json_messages(rows, 1000)
    assert (message.key, message.value) == (b"12", b'{"user_id":12,"item_id":5,"timestamp_ms":7}')


def test_pacing_sends_everything_in_order_at_the_rate():
    started = time.monotonic()
    pieces = list(_paced(events(100), rate=200.0, linger_s=0.02, stop=threading.Event()))
    assert 0.4 < time.monotonic() - started < 2
    assert np.concatenate([piece["item_id"].to_numpy() for piece in pieces]).tolist() == list(range(100))
    assert len(pieces) > 5


def test_pacing_ends_when_it_is_told_to_stop():
    stop = threading.Event()
    pieces = _paced(events(100), rate=50.0, linger_s=0.01, stop=stop)
    sent = next(pieces).num_rows
    stop.set()
    assert sent + sum(piece.num_rows for piece in pieces) < 100


def test_a_rate_and_a_duration_together_are_refused():
    with pytest.raises(ValueError, match="either rate_events_per_s or duration_s"):
        replay(StreamConfig(), SimpleNamespace(interactions=None), rate_events_per_s=1.0, duration_s=1.0)


def test_an_unknown_wire_form_is_refused_with_its_value():
    with pytest.raises(ValueError, match="wire must be arrow or json, got 'csv'"):
        EventProducer(StreamConfig(), wire="csv")
