"""The texts of text ids: each id's text, and whether another text has the same hash.

An id that is a number needs no entry, so a stream of numbers costs nothing here. Texts lie one after another in one
array, so that an id costs its bytes and three integers. Shapes: N rows, Q texts or ids.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa
from numba import njit

from streaming.arrays import BoolArray, Int32Array, Int64Array, UInt8Array
from streaming.events.ids import are_numbers
from streaming.events.partitioner import text_buffers
from streaming.histories.id_index import IdIndex

ID, TEXT = "id", "text"
SCHEMA = pa.schema([(ID, pa.int64()), (TEXT, pa.string())])
_FIRST_IDS, _FIRST_BYTES = 1024, 1 << 14
_AT_ONCE = 1 << 14
_Array = TypeVar("_Array", bound=np.ndarray[Any, Any])


class IdTexts:
    """Texts by id, for the users or the items of a run. Threads that decode may share one."""

    def __init__(self) -> None:
        self._index, self._lock = IdIndex(), threading.Lock()
        self._start_U = np.zeros(_FIRST_IDS, np.int64)
        self._end_U = np.zeros(_FIRST_IDS, np.int64)
        self._bytes = np.zeros(_FIRST_BYTES, np.uint8)
        self._used = self._foreign = 0
        self._changed: list[Int64Array] = []
        self._unchecked: list[Int64Array] = []

    def __len__(self) -> int:
        """How many texts are known or were forgotten."""
        return len(self._index)

    def clashes(self, id_N: Int64Array, text_at_Q: Int64Array, texts: pa.Array) -> BoolArray | None:
        """Remember the texts of rows, and find rows whose id belongs to another text; None if there are none.

        The text that came first keeps the id. A number that equals the hash of a known text clashes too.

        Args:
            id_N: int64, of all rows.
            text_at_Q: int64, rows whose id came as a text; absent ids must not be among them.
            texts: Arrow strings (q,), their texts.
        """
        if not len(text_at_Q) and not len(self._index):
            return None
        is_name_Q = ~are_numbers(texts)
        name_at_Q = text_at_Q[is_name_Q]
        is_number_N = np.ones(len(id_N), np.bool_)
        is_number_N[name_at_Q] = False
        clash_N = np.zeros(len(id_N), np.bool_)
        with self._lock:
            if len(name_at_Q):
                names = texts.filter(pa.array(is_name_Q))
                self._add(id_N[name_at_Q], names)
                clash_N[name_at_Q] = self._differs(id_N[name_at_Q], names)
            clash_N[is_number_N] = self._has(self._index.find(id_N[is_number_N]))
        return clash_N if clash_N.any() else None

    def differs(self, id_Q: Int64Array, texts: pa.Array) -> BoolArray:
        """bool (q,): whether each id belongs to another text than the one given; nothing is remembered."""
        with self._lock:
            return self._differs(id_Q, texts)

    def texts(self, id_Q: Int64Array) -> list[str | None]:
        """The text of each id; None where the id is a number or unknown."""
        with self._lock:
            at_Q = self._index.find(id_Q)
            has_Q = self._has(at_Q)
            found = iter(self._gathered(at_Q[has_Q]).to_pylist())
        return [next(found) if has else None for has in has_Q.tolist()]

    def as_given(self, id_Q: Int64Array) -> list[int | str]:
        """Each id in the form in which it was put in."""
        pairs = zip(id_Q.tolist(), self.texts(id_Q), strict=True)
        return [number if text is None else text for number, text in pairs]

    def forget(self, id_Q: Int64Array) -> None:
        """Forget the texts of these ids; a later event with one of the texts makes it known again."""
        with self._lock:
            at_Q = self._index.find(id_Q)
            at_Q = at_Q[self._has(at_Q)]
            self._end_U[at_Q] = self._start_U[at_Q]
            if self._used > 2 * int((self._end_U - self._start_U)[: len(self._index)].sum()) + _FIRST_BYTES:
                self._compact()

    def load(self, table: pa.Table, *, foreign: bool = False) -> None:
        """Add what `tables` or `changes` wrote; entries that are known already stay.

        Args:
            table: in SCHEMA.
            foreign: whether another rank saves them; then nothing but foreign entries may be known yet.
        """
        texts = table[TEXT].combine_chunks()
        with self._lock:
            self._add(table[ID].to_numpy(), texts.cast(pa.string()))
            self._foreign = len(self._index) if foreign else self._foreign
            self._changed, self._unchecked = [], []

    def tables(self) -> Iterator[pa.Table]:
        """All entries that are saved here, in SCHEMA, in slices; those that are added meanwhile may be missing."""
        for start in range(self._foreign, len(self._index), _AT_ONCE):
            with self._lock:
                some = self._table(self._index.ids[start : start + _AT_ONCE])
            yield some

    def forget_changes(self) -> None:
        """What is known now counts as saved."""
        self._changed = []

    def changes(self) -> pa.Table:
        """Entries that were added since `forget_changes` or the last call."""
        with self._lock:
            changed, self._changed = self._changed, []
            return self._table(_joined(changed))

    def unchecked(self) -> pa.Table:
        """Entries that were added since the last call, for the other ranks."""
        with self._lock:
            added, self._unchecked = self._unchecked, []
            return self._table(_joined(added))

    def clashes_with(self, table: pa.Table) -> list[tuple[int, str, str]]:
        """Ids that have another text here than in a table of another rank: id, text here, text there."""
        with self._lock:
            ids, texts = table[ID].to_numpy(), table[TEXT].combine_chunks()
            at_C = np.flatnonzero(self._differs(ids, texts))
            own = self._gathered(self._index.find(ids[at_C])).to_pylist()
            return list(zip(ids[at_C].tolist(), own, texts.take(pa.array(at_C)).to_pylist(), strict=True))

    def _has(self, at_Q: Int32Array) -> BoolArray:
        found: BoolArray = (at_Q >= 0) & (self._end_U[at_Q] > self._start_U[at_Q])
        return found

    def _add(self, id_Q: Int64Array, texts: pa.Array) -> None:
        """Add the first text of each id that has none."""
        fresh, first = np.unique(id_Q, return_index=True)
        is_new = ~self._has(self._index.find(fresh))
        if not is_new.any():
            return
        first = np.sort(first[is_new])
        at = self._index.add(id_Q[first])
        data, offsets = text_buffers(texts.take(pa.array(first)))
        size = int(offsets[-1] - offsets[0])
        self._start_U, self._end_U = (_roomy(a, len(self._index)) for a in (self._start_U, self._end_U))
        self._bytes = _roomy(self._bytes, self._used + size)
        self._bytes[self._used : self._used + size] = data[offsets[0] : offsets[-1]]
        moved = offsets - offsets[0] + self._used
        self._start_U[at], self._end_U[at] = moved[:-1], moved[1:]
        self._used += size
        self._changed.append(id_Q[first])
        self._unchecked.append(id_Q[first])

    def _differs(self, id_Q: Int64Array, texts: pa.Array) -> BoolArray:
        """bool (q,): whether each id has another text."""
        at_Q = self._index.find(id_Q)
        differs_Q = np.zeros(len(id_Q), np.bool_)
        if len(id_Q):
            _compare(*text_buffers(texts), at_Q, self._bytes, self._start_U, self._end_U, differs_Q)
        return differs_Q

    def _table(self, id_Q: Int64Array) -> pa.Table:
        at_Q = self._index.find(id_Q)
        has_Q = self._has(at_Q)
        return pa.table([pa.array(id_Q[has_Q]), self._gathered(at_Q[has_Q])], schema=SCHEMA)

    def _gathered(self, at_Q: Int32Array) -> pa.Array:
        offset_Q = np.zeros(len(at_Q) + 1, np.int64)
        np.cumsum(self._end_U[at_Q] - self._start_U[at_Q], out=offset_Q[1:])
        out = np.empty(offset_Q[-1], np.uint8)
        _gather(self._bytes, self._start_U[at_Q], offset_Q, out)
        buffers = [None, pa.py_buffer(offset_Q), pa.py_buffer(out)]
        return pa.LargeStringArray.from_buffers(len(at_Q), buffers[1], buffers[2]).cast(pa.string())

    def _compact(self) -> None:
        ids = self._index.ids.copy()
        self._foreign = int(self._has(np.arange(self._foreign, dtype=np.int32)).sum())
        kept, changed, unchecked = self._table(ids), self._changed, self._unchecked
        self._index, self._used = IdIndex(), 0
        self._start_U[:], self._end_U[:] = 0, 0
        self._add(kept[ID].to_numpy(), kept[TEXT].combine_chunks())
        self._changed, self._unchecked = changed, unchecked


class KnownTexts:
    """The texts of a run's users and items."""

    def __init__(self) -> None:
        self.users, self.items = IdTexts(), IdTexts()


def _joined(parts: list[Int64Array]) -> Int64Array:
    return np.unique(np.concatenate([np.zeros(0, np.int64), *parts]))


def _roomy(array: _Array, length: int) -> _Array:
    if length <= len(array):
        return array
    grown = np.zeros(max(length, 2 * len(array)), array.dtype)
    grown[: len(array)] = array
    return cast(_Array, grown)


@njit(cache=True, nogil=True)
def _compare(
    data: UInt8Array,
    offsets: Int64Array,
    at_Q: Int32Array,
    known: UInt8Array,
    start_U: Int64Array,
    end_U: Int64Array,
    differs_Q: BoolArray,
) -> None:
    for q in range(len(at_Q)):
        at = at_Q[q]
        if at < 0 or end_U[at] == start_U[at]:
            continue
        start, length = start_U[at], end_U[at] - start_U[at]
        if offsets[q + 1] - offsets[q] != length:
            differs_Q[q] = True
            continue
        for b in range(length):
            if known[start + b] != data[offsets[q] + b]:
                differs_Q[q] = True
                break


@njit(cache=True, nogil=True)
def _gather(known: UInt8Array, start_Q: Int64Array, offset_Q: Int64Array, out: UInt8Array) -> None:
    for q in range(len(start_Q)):
        for b in range(offset_Q[q + 1] - offset_Q[q]):
            out[offset_Q[q] + b] = known[start_Q[q] + b]
