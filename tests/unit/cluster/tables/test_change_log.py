"""The log of changed rows: what has changed since a mark, whatever was removed, reused or compacted in between."""

import numpy as np
import pytest
import torch

from cluster.tables import change_log
from cluster.tables.change_log import ChangeLog
from cluster.tables.local_rows import LocalRows
from cluster.tables.row_optimizer import row_optimizer


def rows_of(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def keys_of(*ids: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(len(ids), np.int16), np.array(ids, np.int64)


def test_each_mark_has_the_distinct_rows_that_changed_after_it() -> None:
    log = ChangeLog()
    log.touch(rows_of(1, 2))
    first = log.mark()
    log.touch(rows_of(2, 3, 2))
    second = log.mark()
    log.touch(rows_of(5, 3))
    assert log.since(first).tolist() == [2, 5, 3], "the rows that changed last are at the end"
    assert log.since(second).tolist() == [5, 3]
    assert log.since(log.mark()).tolist() == []


def test_a_mark_without_changes_begins_no_interval() -> None:
    log = ChangeLog()
    assert log.mark() == log.mark()
    log.touch(rows_of(4))
    assert log.mark() > 1


def test_a_removed_row_is_not_returned_and_its_reused_number_is() -> None:
    log = ChangeLog()
    start = log.mark()
    log.touch(rows_of(7, 8))
    log.remove(rows_of(7), *keys_of(70))
    assert log.since(start).tolist() == [8]
    log.touch(rows_of(7))
    assert sorted(log.since(start).tolist()) == [7, 8], "each once, although 7 was listed twice"
    assert log.removed_since(start)[1].tolist() == [70]
    assert log.removed_since(log.mark())[1].tolist() == []


def test_entries_stay_within_twice_the_rows_that_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_log, "_FEW", 64)
    log, start = ChangeLog(), 1
    rng = np.random.default_rng(1)
    changed: set[int] = set()
    for _ in range(200):
        some = rng.integers(0, 100, 20)
        changed |= set(some.tolist())
        log.touch(some)
        log.mark()
    assert log.entries <= 2 * 100 + 20
    assert sorted(log.since(start).tolist()) == sorted(changed)


def test_changes_before_a_dropped_mark_are_forgotten() -> None:
    log = ChangeLog()
    log.touch(rows_of(1))
    log.remove(rows_of(2), *keys_of(9))
    second = log.mark()
    log.touch(rows_of(3))
    log.drop_before(second)
    assert (log.entries, log.since(second).tolist()) == (1, [3])
    assert log.removed_since(second)[1].tolist() == []


def test_a_random_history_gives_the_changes_of_every_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_log, "_FEW", 16)
    rng, log = np.random.default_rng(3), ChangeLog()
    history: list[tuple[int, set[int]]] = [(log.mark(), set())]
    for step in range(300):
        some = rng.integers(0, 40, rng.integers(0, 8))
        if step % 7 == 3 and some.shape[0]:
            some = np.unique(some)
            log.remove(some, *keys_of(*some.tolist()))
            for _, changed in history:
                changed -= set(some.tolist())
        else:
            log.touch(some)
            for _, changed in history:
                changed |= set(some.tolist())
        if step % 5 == 0:
            history.append((log.mark(), set()))
        for mark, changed in history[-6:]:
            found = log.since(mark).tolist()
            assert (len(found), set(found)) == (len(changed), changed)


def test_rows_of_a_table_are_recorded_when_they_are_made_changed_and_removed() -> None:
    table = LocalRows(4, row_optimizer("adam"), seed=1, device=torch.device("cpu"))
    before = table.add(*keys_of(1))
    table.log = ChangeLog()
    start = table.log.mark()
    made = table.add(*keys_of(2, 3))
    table.mark_changed(before)
    table.remove(*keys_of(3))
    assert set(table.log.since(start).tolist()) == {int(made[0]), int(before[0])}
    assert table.log.removed_since(start)[1].tolist() == [3]
    table.take_changes()
    assert set(table.log.since(start).tolist()) == {int(made[0]), int(before[0])}, (
        "checkpoints have marks of their own"
    )
