"""Runs, contexts, seen items and accounting of packed batches, against a plain Python reference."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest

from streaming.batches.batcher import Batcher
from streaming.config import StreamConfig
from streaming.events.dead_letter import DeadLetter
from streaming.events.position import Position
from streaming.events.schema import DECODED_SCHEMA, TRAINING_BATCH_SCHEMA
from streaming.events.validation import Decoded
from streaming.histories.history import UserStore

DELETED = 666


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

    def is_deleted(self, items):
        return items == DELETED


class Sink(list):
    def send(self, letters):
        self.extend(letters)


def _columns(users, items, partitions=None, actions=None):
    n = len(users)
    return {
        "user_id": list(users),
        "item_id": list(items),
        "timestamp_ms": [1000 + k for k in range(n)],
        "action": list(actions) if actions is not None else [None] * n,
        "weight": [k / 2 for k in range(n)],
        "value": [None] * n,
        "event_id": [None] * n,
        "partition": list(partitions) if partitions is not None else [0] * n,
        "offset": [100 + k for k in range(n)],
        "row": [k % 3 for k in range(n)],
        "append_ms": [5000 + k for k in range(n)],
        "key_hash": list(partitions) if partitions is not None else [0] * n,
    }


def _batcher(source, history_length=4, seen_length=6, sink=None, **settings):
    config = StreamConfig(history_length=history_length, seen_length=seen_length, **settings)
    users = UserStore(history_length, seen_length)
    return Batcher(config, source, users, NoAttributes(), sink if sink is not None else Sink())


def _reference(columns, quota, width, seen_length):
    """The same batches, one event at a time; "skip" is a negative, "look" is ignored."""
    past, unwanted = defaultdict(list), defaultdict(list)
    todo = {p: [n for n, q in enumerate(columns["partition"]) if q == p] for p in set(columns["partition"])}
    while any(todo.values()):
        batch = []
        for p in sorted(todo):
            now, todo[p] = todo[p][:quota], todo[p][quota:]
            runs = defaultdict(list)
            unwanted_before = {}
            for n in now:
                user = columns["user_id"][n]
                unwanted_before[n] = unwanted[user][-width:]
                if columns["action"][n] == "skip":
                    unwanted[user].append(columns["item_id"][n])
                elif columns["action"][n] != "look":
                    runs[user].append(n)
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
                            "negatives": unwanted_before[piece[0]],
                        }
                    )
                    past[user] = before + new
        yield batch


@pytest.mark.parametrize(
    "actions", [[None], ["like", "skip", "look", None], ["skip", "skip", "skip", "like"]]
)
@pytest.mark.parametrize(
    ("quota", "width", "seen_length"), [(7, 4, 6), (200, 4, 100), (50, 50, 3), (64, 1, 70)]
)
def test_batches_equal_those_of_a_plain_reference(quota, width, seen_length, actions):
    rng = np.random.default_rng(quota)
    n = 600
    users = rng.zipf(1.5, n) % 17 * 4
    partitions = users % 3
    drawn = [actions[k] for k in rng.integers(0, len(actions), n)]
    columns = _columns(users.tolist(), rng.integers(0, 30, n).tolist(), partitions.tolist(), drawn)
    settings = {"positive_actions": ["like"], "negative_actions": ["skip"]}
    batcher = _batcher(ListSource(columns), width, seen_length, **settings)
    aside = []
    for expected in _reference(columns, quota, width, seen_length):
        batch = batcher.next_batch(quota)
        assert batch.schema == TRAINING_BATCH_SCHEMA
        assert batch.to_pylist() == expected
        aside += batcher.set_aside.to_pylist()
    assert batcher.next_batch(quota).num_rows == 0
    assert batcher.set_aside.num_rows == 0
    assert batcher.rows_read == n
    signs = {"skip": -1, "look": 0}
    expected = [
        {"user_id": user, "partition": partition, "offset": offset, "row": row, "sign": signs[action]}
        for user, partition, offset, row, action in zip(
            *(columns[name] for name in ("user_id", "partition", "offset", "row", "action")), strict=True
        )
        if action in signs
    ]
    assert sorted(aside, key=_place) == sorted(expected, key=_place)


def _place(row):
    return row["partition"], row["offset"]


def test_a_negative_is_known_to_the_targets_after_it_and_to_no_target_before_it():
    actions = [None, "skip", None, "skip", None]
    source = ListSource(_columns([1, 1, 2, 1, 1], [10, 11, 12, 13, 14], actions=actions))
    batcher = _batcher(source, history_length=2, negative_actions=["skip"])
    assert [row["negatives"] for row in batcher.next_batch(2).to_pylist()] == [[]]
    assert [row["negatives"] for row in batcher.next_batch(9).to_pylist()] == [[], [11, 13]]


def test_a_batch_of_negatives_alone_has_no_rows_and_is_remembered():
    source = ListSource(_columns([1] * 60 + [2], list(range(61)), actions=["skip"] * 61))
    batcher = _batcher(source, negative_actions=["skip"])
    assert batcher.next_batch(61).num_rows == 0
    assert batcher.set_aside.num_rows == batcher.rows_read == 61
    users = batcher._users
    assert len(users) == 0
    assert users.negatives.last_items(np.array([1, 2, 3]), 9)[0].tolist() == [56, 57, 58, 59, 60]


def test_weights_are_those_of_the_event_times_those_of_its_action():
    source = ListSource(_columns([1, 1, 1], [1, 2, 3], actions=["buy", "cart", None]))
    batcher = _batcher(source, action_weights=["buy=3", "cart=0.5"])
    assert batcher.next_batch(9)["weight"].to_pylist() == [[0.0, 0.25, 1.0]]


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
