"""For any packing, polling and cutting of messages, every row appears once, in order, usable or dead."""

from types import SimpleNamespace

import numpy as np
import orjson
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.codecs.codec import ARROW, ENCODING_HEADER, decode_messages, encode_events
from streaming.events.position import Position
from streaming.events.validation import Place
from streaming.histories.history import UserStore
from streaming.sources.row_queue import RowQueue

PLACE = Place("interactions", 0, 1)

# An event is (user, item or None, timestamp); None and timestamps <= 0 cannot be used.
EVENT = st.tuples(st.integers(-5, 5), st.none() | st.integers(0, 9), st.integers(-1, 20))
MESSAGE = st.tuples(st.booleans(), st.lists(EVENT, max_size=6))


def _messages(packed):
    """Kafka records and the rows in them, as (offset, row, event)."""
    records, rows = [], []
    for offset, (as_arrow, events) in enumerate(packed):
        if as_arrow:
            columns = list(zip(*events, strict=True)) or [[], [], []]
            names = ("user_id", "item_id", "timestamp_ms")
            arrays = [pa.array(column, pa.int64()) for column in columns]
            value = encode_events(pa.RecordBatch.from_arrays(arrays, names=names))
            rows += [(offset, row, event) for row, event in enumerate(events)]
        else:
            event = (*events, (1, 2, 3))[0]
            value = orjson.dumps(dict(zip(("user_id", "item_id", "timestamp_ms"), event, strict=True)))
            rows.append((offset, 0, event))
        headers = [(ENCODING_HEADER, ARROW)] if as_arrow else None
        records.append(SimpleNamespace(offset=offset, timestamp=1, value=value, headers=headers))
    return records, rows


def _outcome(stretches):
    found = {}
    for stretch in stretches:
        for row in stretch.rows.to_pylist():
            event = (row["user_id"], row["item_id"], row["timestamp_ms"])
            found[row["offset"], row["row"]] = ("used", event)
        for letter in stretch.dead:
            original = orjson.loads(letter.value)
            found[letter.offset, letter.row] = ("dead", tuple(original.values()))
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(MESSAGE, max_size=8), st.lists(st.integers(1, 7), min_size=1, max_size=5), st.data())
def test_any_polls_and_any_restarts_give_every_row_exactly_once(packed, quotas, data):
    records, rows = _messages(packed)
    expected = {
        (offset, row): ("used" if event[1] is not None and event[2] > 0 else "dead", event)
        for offset, row, event in rows
    }
    position, taken, turn = Position(0, 0), [], 0
    while position.offset < len(records):
        queue = RowQueue(position)
        rest = records[position.offset :]
        poll = data.draw(st.integers(1, len(rest)))
        queue.put(decode_messages(rest[:poll], PLACE), rest[poll - 1].offset + 1)
        for _ in range(data.draw(st.integers(1, 4))):
            taken += queue.take(quotas[turn % len(quotas)])
            turn += 1
        queue.skip_gap(queue.fetched)
        position = queue.position
    assert _outcome(taken) == expected
    assert sum(stretch.row_count for stretch in taken) == len(rows)


RUN = st.tuples(st.integers(0, 6), st.lists(st.integers(0, 99), min_size=1, max_size=70))


@settings(max_examples=60, deadline=None)
@given(st.lists(RUN, max_size=20), st.integers(0, 20), st.integers(1, 40), st.integers(1, 80))
def test_histories_do_not_depend_on_how_they_were_appended_or_saved(runs, saved_after, width, seen):
    store, events = UserStore(width, seen), {}
    for number, (user, items) in enumerate(runs):
        if number == saved_after:
            table, store = store.to_table(0), UserStore(width, seen)
            store.load(table)
        values = np.array(items, np.int64)
        ends = np.array([0, len(items)])
        store.append(np.array([user]), np.zeros(1, np.int32), ends, values, values * 2)
        events.setdefault(user, []).extend(items)
    table = store.to_table(0).to_pydict()
    retained = max(width, seen)
    assert table["user_id"] == sorted(events)
    assert table["items"] == [events[user][-retained:] for user in sorted(events)]
    assert table["times_ms"] == [[2 * i for i in events[user][-retained:]] for user in sorted(events)]
    assert table["events"] == [len(events[user]) for user in sorted(events)]
