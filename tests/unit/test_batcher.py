"""Runs, contexts, seen items and accounting of packed batches, against a plain Python reference."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest

from streaming.batcher import Batcher
from streaming.config import StreamConfig
from streaming.dead_letter import DeadLetter
from streaming.history import UserStore
from streaming.position import Position
from streaming.schema import DECODED_SCHEMA, TRAINING_BATCH_SCHEMA
from streaming.validation import Decoded


class ListSource:
    """Events of one or more partitions, all ready at once."""

    def __init__(self, columns, dead=()):
        self.rows = pa.RecordBatch.from_pydict(columns, schema=DECODED_SCHEMA)
        self.dead = list(dead)
        self.partitions = sorted(set(columns["partition"]))
        self.finished = False
        self.taken = dict.fromkeys(self.partitions, 0)

    def take(self, quota):
        parts = []
        partition_N = self.rows["partition"].to_numpy()
        for p in self.partitions:
            at = np.flatnonzero(partition_N == p)[self.taken[p] :][: quota[p]]
            self.taken[p] += len(at)
            parts.append(self.rows.take(pa.array(at)))
        dead, self.dead = self.dead, []
        return Decoded(pa.concat_batches(parts), dead)

    def ready_rows(self):
        partition_N = self.rows["partition"].to_numpy()
        return {p: int((partition_N == p).sum()) - self.taken[p] for p in self.partitions}

    def positions(self):
        return {p: Position(self.taken[p], 0) for p in self.partitions}


class NoAttributes:
    def user_attributes(self, users):
        return np.stack([users * 10, users * 10 + 1], axis=1)


class Sink(list):
    def send(self, letters):
        self.extend(letters)


def _columns(users, items, partitions=None):
    n = len(users)
    return {
        "user_id": list(users),
        "item_id": list(items),
        "timestamp_ms": [1000 + k for k in range(n)],
        "action": [None] * n,
        "weight": [k / 2 for k in range(n)],
        "value": [None] * n,
        "event_id": [None] * n,
        "partition": list(partitions) if partitions is not None else [0] * n,
        "offset": [100 + k for k in range(n)],
        "row": [k % 3 for k in range(n)],
        "append_ms": [5000 + k for k in range(n)],
    }


def _batcher(source, history_length=4, seen_length=6, sink=None):
    config = StreamConfig(history_length=history_length, seen_length=seen_length)
    users = UserStore(history_length, seen_length)
    return Batcher(config, source, users, NoAttributes(), sink if sink is not None else Sink())


def _reference(columns, quota, width, seen_length):
    """The same batches, one event at a time."""
    past = defaultdict(list)
    todo = {p: [n for n, q in enumerate(columns["partition"]) if q == p] for p in set(columns["partition"])}
    while any(todo.values()):
        batch = []
        for p in sorted(todo):
            now, todo[p] = todo[p][:quota], todo[p][quota:]
            runs = defaultdict(list)
            for n in now:
                runs[columns["user_id"][n]].append(n)
            for user, run in runs.items():
                for start in range(0, len(run), width):
                    piece = run[start : start + width]
                    before = past[user]
                    context = before[-width:]
                    new = [(columns["item_id"][n], columns["timestamp_ms"][n]) for n in piece]
                    batch.append(
                        {
                            "user_id": user,
                            "items": [i for i, _ in context + new],
                            "times_ms": [t for _, t in context + new],
                            "context_length": len(context),
                            "events_before": len(before),
                            "attributes": [user * 10, user * 10 + 1],
                            "seen": [i for i, _ in before[-seen_length:]],
                            "partition": p,
                            "offset": [columns["offset"][n] for n in piece],
                            "row": [columns["row"][n] for n in piece],
                            "append_ms": [columns["append_ms"][n] for n in piece],
                            "weight": [columns["weight"][n] for n in piece],
                        }
                    )
                    past[user] = before + new
        yield batch


@pytest.mark.parametrize(
    ("quota", "width", "seen_length"), [(7, 4, 6), (200, 4, 100), (50, 50, 3), (64, 1, 70)]
)
def test_batches_equal_those_of_a_plain_reference(quota, width, seen_length):
    rng = np.random.default_rng(quota)
    n = 600
    users = rng.zipf(1.5, n) % 17 * 4
    partitions = users % 3
    columns = _columns(users.tolist(), rng.integers(0, 30, n).tolist(), partitions.tolist())
    batcher = _batcher(ListSource(columns), width, seen_length)
    for expected in _reference(columns, quota, width, seen_length):
        batch = batcher.next_batch(quota)
        assert batch.schema == TRAINING_BATCH_SCHEMA
        assert batch.to_pylist() == expected
    assert batcher.next_batch(quota).num_rows == 0
    assert batcher.rows_read == n


def test_a_user_with_far_more_events_than_are_kept_shows_only_the_last():
    items = list(range(500))
    source = ListSource(_columns([9] * 500, items))
    batcher = _batcher(source, history_length=4, seen_length=40)
    rows = [row for _ in range(5) for row in batcher.next_batch(100).to_pylist()]
    assert [item for row in rows for item in row["items"][row["context_length"] :]] == items
    assert rows[-1]["seen"] == items[456:496]
    assert rows[-1]["events_before"] == 496
    assert max(len(row["items"]) for row in rows) == 8


def test_dead_letters_are_sent_and_counted_and_never_trained():
    sink = Sink()
    letters = [DeadLetter("bad", "t", 0, 7, 0, b"x")]
    batcher = _batcher(ListSource(_columns([1, 2], [3, 4]), letters), sink=sink)
    assert batcher.next_batch(10).num_rows == 2
    assert sink == letters
    assert (batcher.rows_read, batcher.rows_dead) == (3, 1)


def test_watermarks_are_the_latest_event_times_by_partition():
    columns = _columns([1, 2, 1], [1, 2, 3], [0, 1, 0])
    columns["timestamp_ms"] = [50, 70, 40]
    batcher = _batcher(ListSource(columns))
    batcher.next_batch(1)
    batcher.next_batch(1)
    assert batcher.watermark_ms == {0: 50, 1: 70}


def test_ready_rows_are_counted_up_to_the_quota():
    batcher = _batcher(ListSource(_columns([1, 2, 2], [1, 2, 3], [0, 1, 1])))
    assert [batcher.ready_rows(quota) for quota in (1, 2, 3)] == [2, 3, 3]
