"""The exactly-once proof: it survives saving, ignores order, and detects lost, doubled and moved events."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from cluster.checkpoints.arrays import read_table, write_table
from cluster.ledger import Ledger, PartitionLedger
from streaming.events.schema import SET_ASIDE_SCHEMA
from tests.support.training_batches import Run, to_batch

EVENTS = st.lists(
    st.tuples(
        st.integers(-5, 5) | st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**50), st.integers(0, 9)
    ),
    max_size=60,
    unique_by=lambda event: event[1:],
)
SOME_EVENTS = EVENTS.filter(bool)


def _ledger(events, partition=3):
    ledger = PartitionLedger(partition)
    users, offsets, rows = (np.array([e[k] for e in events], np.int64) for k in range(3))
    ledger.add(users, offsets, rows)
    return ledger


def _same(first, second):
    counts = zip(first.user_counts(), second.user_counts(), strict=True)
    return (first.events, first.hash_sum) == (second.events, second.hash_sum) and all(
        np.array_equal(a, b) for a, b in counts
    )


@given(events=EVENTS)
def test_a_ledger_counts_each_user_and_comes_back_from_its_file(events):
    ledger = _ledger(events)
    users = sorted({e[0] for e in events})
    assert ledger.user_counts()[0].tolist() == users
    assert ledger.user_counts()[1].tolist() == [sum(e[0] == user for e in events) for user in users]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.arrow"
        write_table(path, ledger.to_table())
        again = PartitionLedger.from_table(read_table(path))
    assert again.partition == 3
    assert _same(again, ledger)


@given(events=EVENTS, order=st.randoms(use_true_random=False), cut=st.integers(0, 60))
def test_a_ledger_does_not_depend_on_order_or_on_how_the_events_were_batched(events, order, cut):
    shuffled = list(events)
    order.shuffle(shuffled)
    ledger = PartitionLedger(3)
    for part in (shuffled[:cut], shuffled[cut:]):
        ledger.add(*(np.array([e[k] for e in part], np.int64) for k in range(3)))
    assert _same(ledger, _ledger(events))


@given(events=SOME_EVENTS, which=st.integers(0, 59))
def test_a_lost_and_a_doubled_event_change_count_and_hash(events, which):
    whole, one = _ledger(events), events[which % len(events)]
    for other in ([e for e in events if e != one], [*events, one]):
        assert _ledger(other).events != whole.events
        assert _ledger(other).hash_sum != whole.hash_sum


@given(events=SOME_EVENTS, which=st.integers(0, 59), away=st.integers(1, 1000))
def test_an_event_trained_from_another_place_changes_the_hash_alone(events, which, away):
    which %= len(events)
    user, offset, row = events[which]
    for place in ((user, offset + 2**51 + away, row), (user, offset, row + 10 * away)):
        moved = _ledger([*events[:which], place, *events[which + 1 :]])
        assert moved.hash_sum != _ledger(events).hash_sum
        assert moved.events == _ledger(events).events


@given(events=SOME_EVENTS)
def test_the_same_offsets_of_another_partition_have_another_hash(events):
    assert _ledger(events, partition=4).hash_sum != _ledger(events, partition=3).hash_sum


def test_a_batch_is_counted_in_the_ledgers_of_its_partitions():
    batch = to_batch(
        [
            Run(1, [9, 9], [5, 6], partition=0, offsets=[10, 11]),
            Run(2, [], [7], partition=2, offsets=[4]),
            Run(1, [5, 6], [8], partition=0, offsets=[12]),
        ]
    )
    ledger = Ledger([0, 1, 2])
    ledger.add_batch(batch)
    assert ledger.events == 4
    assert _same(ledger.partitions[0], _ledger([(1, 10, 0), (1, 11, 0), (1, 12, 0)], partition=0))
    assert _same(ledger.partitions[2], _ledger([(2, 4, 0)], partition=2))
    assert ledger.partitions[1].events == 0


def test_rows_that_were_set_aside_count_as_used_and_not_as_trained():
    batch = to_batch([Run(1, [], [5], partition=0, offsets=[10])])
    rows = [(1, 0, 11, 0, -1), (2, 0, 12, 3, 0), (7, 2, 4, 1, -1)]
    ledger = Ledger([0, 1, 2])
    ledger.add_batch(batch)
    columns = zip(*rows, strict=True)
    ledger.add_set_aside(
        pa.RecordBatch.from_arrays(
            [pa.array(column, field.type) for column, field in zip(columns, SET_ASIDE_SCHEMA, strict=True)],
            schema=SET_ASIDE_SCHEMA,
        )
    )
    assert (ledger.events, ledger.negatives, ledger.ignored) == (4, 2, 1)
    assert _same(ledger.partitions[0], _ledger([(1, 10, 0), (1, 11, 0), (2, 12, 3)], partition=0))
    again = PartitionLedger.from_table(ledger.partitions[0].to_table())
    assert (again.trained, again.negatives, again.ignored) == (1, 1, 1)


def test_a_ledger_of_an_earlier_version_has_nothing_set_aside():
    table = _ledger([(1, 5, 0), (2, 6, 0)]).to_table()
    meta = {k: v for k, v in table.schema.metadata.items() if k not in (b"negatives", b"ignored")}
    old = PartitionLedger.from_table(table.replace_schema_metadata(meta))
    assert (old.trained, old.negatives, old.ignored) == (2, 0, 0)


def test_a_ledger_that_was_loaded_goes_on_counting():
    events = [(1, 5, 0), (2, 6, 0), (1, 7, 0), (3, 8, 1)]
    resumed = PartitionLedger.from_table(_ledger(events[:2]).to_table())
    resumed.add(*(np.array([e[k] for e in events[2:]], np.int64) for k in range(3)))
    assert _same(resumed, _ledger(events))


@given(events=EVENTS, border=st.integers(0, 2**50), cut=st.integers(0, 60))
def test_behind_a_gap_hash_and_counters_are_of_what_came_since_and_sums_of_everything(events, border, cut):
    events = sorted(events, key=lambda event: event[1])
    ledger, since = _ledger(events[:cut]), [e for e in events[cut:] if e[1] >= border]
    ledger.begin_behind(border)
    ledger.add(*(np.array([e[k] for e in events[cut:]], np.int64) for k in range(3)))
    want = _ledger(since)
    users, counts = ledger.user_counts()
    assert ledger.events == len(events)
    assert ledger.hash_sum == want.hash_sum
    assert [users[counts > 0].tolist(), counts[counts > 0].tolist()] == [
        p.tolist() for p in want.user_counts()
    ]
