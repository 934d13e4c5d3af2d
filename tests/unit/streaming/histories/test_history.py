"""UserStore against Python lists."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest

from streaming.events.schema import HISTORY_SCHEMA
from streaming.histories.history import UserStore
from streaming.histories.id_index import IdIndex


def _fill(store, rng, events, users):
    """Random runs; returns the history of each user."""
    past = defaultdict(list)
    clock = 0
    while clock < events:
        user_R = rng.integers(0, users, 5) * 7 - 3
        length_R = rng.integers(1, 80, 5)
        start_R = np.concatenate([[0], np.cumsum(length_R)])
        item_N = rng.integers(0, 10**12, start_R[-1])
        time_N = np.arange(clock, clock + len(item_N))
        store.append(user_R, (user_R % 2).astype(np.int32), start_R, item_N, time_N)
        for r, user in enumerate(user_R):
            past[int(user)] += list(
                zip(item_N[start_R[r] : start_R[r + 1]], time_N[start_R[r] :], strict=False)
            )
        clock += len(item_N)
    return past


@pytest.mark.parametrize(("history_length", "seen_length"), [(1, 1), (50, 10), (10, 100), (3, 64)])
def test_last_events_and_counts_equal_a_list_per_user(history_length, seen_length):
    store = UserStore(history_length, seen_length)
    past = _fill(store, np.random.default_rng(seen_length), 20_000, 60)
    users = np.array([*past, 999_999])
    item_N, time_N, offset_Q = store.last(users, history_length)
    for q, user in enumerate(users):
        expected = past.get(int(user), [])[-history_length:]
        stretch = slice(offset_Q[q], offset_Q[q + 1])
        assert list(zip(item_N[stretch], time_N[stretch], strict=True)) == expected
    assert store.counts(users).tolist() == [len(past.get(int(u), [])) for u in users]


def test_memory_is_bounded_however_many_events_a_user_has():
    store = UserStore(10, 100)
    for _ in range(200):
        store.append(np.array([1]), np.zeros(1, np.int32), np.array([0, 500]), np.arange(500), np.arange(500))
    assert store.log.length_U[0] < 132
    assert len(store.log.next_C) == 1024


def test_a_saved_partition_loads_into_an_equal_store_whatever_the_slots():
    rng = np.random.default_rng(3)
    store = UserStore(10, 100)
    past = _fill(store, rng, 9_000, 40)
    tables = [store.to_table(p) for p in (0, 1)]
    assert store.users().tolist() == sorted(past)
    assert tables[0].schema == HISTORY_SCHEMA
    assert [t["user_id"].to_pylist() for t in tables] == [
        sorted(u for u in past if u % 2 == p) for p in (0, 1)
    ]
    other = UserStore(10, 100)
    other.load(tables[1])
    other.load(tables[0])
    more = np.random.default_rng(4)
    _fill(store, np.random.default_rng(4), 5_000, 60)
    _fill(other, more, 5_000, 60)
    assert [other.to_table(p) for p in (0, 1)] == [store.to_table(p) for p in (0, 1)]


def test_histories_of_sliced_and_chunked_tables_load_too():
    store = UserStore(10, 100)
    _fill(store, np.random.default_rng(5), 3_000, 40)
    table = store.to_table(0)
    other = UserStore(10, 100)
    other.load(pa.concat_tables([table.slice(0, 3), table.slice(3)]))
    assert other.to_table(0) == table


def test_a_user_cannot_be_loaded_twice():
    store = UserStore(10, 100)
    store.append(np.array([1]), np.zeros(1, np.int32), np.array([0, 1]), np.arange(1), np.arange(1))
    with pytest.raises(ValueError, match="loaded twice"):
        store.load(store.to_table(0))


def _with_negatives(rng):
    """User 1 has events only, 2 both, 3 negatives only; 4 is of another partition."""
    store = UserStore(40, 60)
    items = rng.integers(0, 10**12, 300)
    store.append(np.array([1, 2]), np.zeros(2, np.int32), np.array([0, 100, 300]), items, np.arange(300))
    partitions = np.array([0, 0, 1], np.int32)
    store.negatives.append(np.array([2, 3, 4]), partitions, np.array([0, 70, 73, 80]), items, np.empty(0))
    return store, items


def test_negatives_are_saved_beside_the_history_also_of_users_who_have_nothing_else():
    store, items = _with_negatives(np.random.default_rng(6))
    table = store.to_table(0)
    assert table["user_id"].to_pylist() == [1, 2, 3]
    assert table["events"].to_pylist() == [100, 200, 0]
    assert table["negatives"].to_pylist() == [[], items[30:70].tolist(), items[70:73].tolist()]
    other = UserStore(40, 60)
    other.load(store.to_table(1))
    other.load(pa.concat_tables([table.slice(0, 2), table.slice(2)]))
    assert [other.to_table(p) for p in (0, 1)] == [store.to_table(p) for p in (0, 1)]
    assert (other.users_of(0).tolist(), other.negatives.users_of(0).tolist()) == ([1, 2], [2, 3])
    with pytest.raises(ValueError, match="loaded twice"):
        other.load(table.slice(2))


def test_a_table_of_an_earlier_version_has_no_negatives():
    store, _ = _with_negatives(np.random.default_rng(7))
    table = store.to_table(0).drop_columns(["negatives"])
    other = UserStore(40, 60)
    other.load(table)
    assert other.to_table(0).drop_columns(["negatives"]) == table.slice(0, 2)
    assert len(other.negatives) == 0


def test_negatives_keep_no_times():
    store, _ = _with_negatives(np.random.default_rng(8))
    assert store.negatives.log.times_CK.size == 0
    store.negatives.reserve(5000, 0)
    assert store.negatives.log.times_CK.size == 0


def test_the_id_index_numbers_ids_in_order_of_arrival():
    rng = np.random.default_rng(0)
    index, expected = IdIndex(), {}
    for _ in range(20):
        ids = rng.integers(-(2**63), 2**63, 300)
        ids[:100] = rng.integers(-5, 200, 100)
        assert index.find(ids).tolist() == [expected.get(int(i), -1) for i in ids]
        assert index.add(ids).tolist() == [expected.setdefault(int(i), len(expected)) for i in ids]
    assert index.ids.tolist() == list(expected)


@pytest.mark.parametrize(("history_length", "seen_length"), [(3, 64), (50, 10)])
def test_users_and_items_that_are_taken_out_leave_everything_else_as_it_was(history_length, seen_length):
    rng = np.random.default_rng(7)
    store, few = UserStore(history_length, seen_length), 40
    past = {u: [] for u in range(20)}
    for round_ in range(6):
        for user in past:
            items = rng.integers(0, few, rng.integers(1, 60))
            store.append(np.array([user]), np.zeros(1, np.int32), np.array([0, len(items)]), items, items * 2)
            past[user] += items.tolist()
        # As many as the store keeps, chunks being freed whole, may be shown; the last ones always are.
        gone_user, gone_items = round_, rng.integers(0, few, 3)
        store.take_changed()
        store.drop_items(gone_items)
        store.remove(np.array([gone_user]))
        retained = store.retained
        kept = {u: [i for i in items[-retained:] if i not in gone_items] for u, items in past.items()}
        kept[gone_user] = []
        found, times, offset = store.last(np.array([*past]), retained)
        for q, user in enumerate(past):
            stretch = found[offset[q] : offset[q + 1]].tolist()
            assert stretch[len(stretch) - len(kept[user]) :] == kept[user]
            assert (times[offset[q] : offset[q + 1]] == 2 * found[offset[q] : offset[q + 1]]).all()
            assert not set(stretch) & set(gone_items.tolist())
            past[user] = stretch
        assert gone_user not in store.users()
        assert gone_user in store.take_changed()
    again = UserStore(history_length, seen_length)
    again.load(store.to_table(0))
    assert again.to_table(0) == store.to_table(0)
