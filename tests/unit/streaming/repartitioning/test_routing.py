"""Messages that are routed together go where each goes alone."""

from types import SimpleNamespace

import orjson
import pyarrow as pa

from streaming.codecs.codec import ARROW, ENCODING_HEADER, encode_events
from streaming.config import StreamConfig
from streaming.events.partitioner import partition_of_texts
from streaming.events.validation import Place
from streaming.repartitioning.routing import route, route_all
from tests.support.hash_clash import two_texts_with_one_hash

PLACE = Place.of(StreamConfig(max_future_s=0), "theirs", 0, 1)
PARTITIONS = 5


def _record(value, partition=0, offset=0, headers=(), key=None):
    return SimpleNamespace(
        partition=partition, offset=offset, timestamp=5, value=value, headers=list(headers), key=key
    )


def _json(user, **more):
    return orjson.dumps({"user_id": user, "item_id": 1, "timestamp_ms": 5, **more})


def test_messages_routed_together_go_where_each_goes_alone():
    first, second = two_texts_with_one_hash()
    rows = pa.RecordBatch.from_pydict(
        {"user_id": ["ann", "bob", None], "item_id": [1, 2, 3], "timestamp_ms": [5, 6, 7]}
    )
    records = [
        _record(_json("ann")),
        _record(_json(7), 1, headers=[("trace", b"x")]),  # the same offset in another partition
        _record(b"{broken", 4, 9, key=b"k"),
        _record(encode_events(rows), 3, headers=[(ENCODING_HEADER, ARROW)]),
        _record(_json(first), 2),
        _record(_json(second), 2, 1),
        _record(None, 1, 5),
        _record(_json("ann", item_id=[]), 3, 6),
        _record(_json("7"), 0, 2, headers=[(ENCODING_HEADER, b"json")]),
    ]
    together = route_all(records, PLACE, PARTITIONS)
    assert together == [list(route(record, PLACE, PARTITIONS)) for record in records]
    keyed = [messages[0].key for messages in together]
    assert keyed[:2] == [b"ann", b"7"]
    assert keyed[2] == b"k"
    assert keyed[4:6] == [first.encode(), second.encode()]
    assert together[1][0].headers == [("trace", b"x")]
    homes = partition_of_texts(pa.array(["ann", first, second]), PARTITIONS).tolist()
    assert [together[n][0].partition for n in (0, 4, 5)] == homes
    assert route_all([], PLACE, PARTITIONS) == []
