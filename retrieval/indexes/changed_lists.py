"""Inverted lists of which some were replaced: a view of an index after items came, moved, and went.

A replaced list is a copy with its new members; all others are the index's own. So a search of a view is one search by
Faiss of exactly the items that are left, and views share what did not change between them.

Shape letters: N items, L lists, R rows, Q queries, K results, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from retrieval.arrays import Float32Array, Int64Array, UInt8Array
from retrieval.indexes.kinds import search, without_items

_UNCHANGED = (0, 0, 2**64 - 1)
"""Faiss's size, capacity, and place of a list that is not here."""
_ROW_BYTES = 8
_FEW = 8


@dataclass(frozen=True)
class Members:
    """Items of lists.

    Attributes:
        row_N: int64, their row numbers.
        list_N: int64, the list of each.
    """

    row_N: Int64Array
    list_N: Int64Array

    def by_list(self) -> tuple[Int64Array, Int64Array]:
        """The order in which lists ascend, and where each list ends and begins in it: int64 (L + 1,)."""
        order = np.argsort(self.list_N, kind="stable")
        return order, self.list_N[order]


@dataclass(frozen=True)
class ChangedLists:
    """Lists after some changes; immutable, so any number of threads may search them.

    Attributes:
        base: Faiss's index on the CPU, its lists not packed.
        blocks: by list, the replaced one: codes, then row numbers; None where it is the base's.
        table: uint64 (L, 3), size, capacity, and address of each block.
        empty: replaced lists without members; Faiss would take the base's for one, so it has a row -1.
        ivf: Faiss's index to search; None as long as nothing has changed.
    """

    base: Any = field(repr=False)
    blocks: npt.NDArray[np.object_] = field(repr=False)
    table: npt.NDArray[np.uint64] = field(repr=False)
    empty: int = 0
    ivf: Any = field(default=None, repr=False)
    kept: tuple[Any, ...] = field(default=(), repr=False)

    @staticmethod
    def of(base: Any) -> ChangedLists:
        """The lists of an index before any change."""
        lists = int(base.nlist)
        table = np.empty((lists, 3), np.uint64)
        table[:] = np.array(_UNCHANGED, np.uint64)
        return ChangedLists(base, np.full(lists, None), table)

    def changed(self, gone: Members, come: Members, vectors_ND: Float32Array) -> ChangedLists:
        """The lists without some rows and with others; the cost is that of copying the lists they are in.

        Args:
            gone: rows that are in these lists.
            come: rows that are not.
            vectors_ND: float32, of the rows that come.
        """
        blocks, table, empty = self.blocks.copy(), self.table.copy(), self.empty
        (gone_order, gone_lists), (come_order, come_lists) = gone.by_list(), come.by_list()
        gone_rows, come_rows = gone.row_N[gone_order], come.row_N[come_order]
        codes = self._encoded(vectors_ND[come_order], come_lists)
        touched = np.union1d(gone_lists, come_lists)
        ends = [
            (lists.searchsorted(touched, "left"), lists.searchsorted(touched, "right"))
            for lists in (gone_lists, come_lists)
        ]
        for number, from_gone, to_gone, from_come, to_come in zip(
            touched.tolist(), *(end.tolist() for pair in ends for end in pair), strict=True
        ):
            old_codes, old_rows = self._members(number)
            stays = _others(old_rows, gone_rows[from_gone:to_gone])
            rows = np.concatenate([old_rows[stays], come_rows[from_come:to_come]])
            block = _block(np.concatenate([old_codes[stays], codes[from_come:to_come]]), rows)
            empty += (not rows.shape[0]) - (old_rows.shape[0] == 0 and blocks[number] is not None)
            size = max(1, rows.shape[0])
            blocks[number], table[number] = block, (size, _capacity(size), block.ctypes.data)
        return ChangedLists(self.base, blocks, table, empty, *self._searchable(table, blocks))

    def search(self, query_QD: Float32Array, k: int, nprobe: int) -> tuple[Int64Array, Float32Array]:
        """Row numbers int64 (Q, K), -1 padded, and inner products float32 (Q, K), best first, -inf padded."""
        queries = np.ascontiguousarray(query_QD, np.float32)
        rows, scores = search(self.base if self.ivf is None else self.ivf, queries, k + self.empty, nprobe)
        if rows[:, -1].min(initial=0) < 0 or self.empty:
            scores[rows < 0] = -np.inf
        if self.empty:
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            rows, scores = np.take_along_axis(rows, best, 1), np.take_along_axis(scores, best, 1)
        return rows, scores

    def list_of_each(self) -> npt.NDArray[np.int32]:
        """The list of each row of the base, int32 (N,); reads all lists."""
        list_N = np.zeros(int(self.base.ntotal), np.int32)
        for number in range(self.blocks.shape[0]):
            list_N[self._stored(number)[1]] = number
        return list_N

    def lengths(self) -> Int64Array:
        """Members of each list, int64 (L,)."""
        lists = range(self.blocks.shape[0])
        return np.array([self._members(number)[1].shape[0] for number in lists], np.int64)

    def _members(self, number: int) -> tuple[UInt8Array, Int64Array]:
        """Codes uint8 (R, bytes) and row numbers int64 (R,) of a list."""
        block = self.blocks[number]
        if block is None:
            return self._stored(number)
        (size, capacity), width = self.table[number, :2].tolist(), int(self.base.code_size)
        rows = block[capacity * width :].view(np.int64)[:size]
        if rows[0] < 0:
            return np.empty((0, width), np.uint8), rows[:0]
        return block[: size * width].reshape(size, width), rows

    def _stored(self, number: int) -> tuple[UInt8Array, Int64Array]:
        lists, width = self.base.invlists, int(self.base.code_size)
        size = lists.list_size(number)
        if not size:
            return np.empty((0, width), np.uint8), np.empty(0, np.int64)
        codes = faiss.rev_swig_ptr(lists.get_codes(number), size * width)
        return codes.reshape(size, width), faiss.rev_swig_ptr(lists.get_ids(number), size)

    def _encoded(self, vectors_ND: Float32Array, list_N: Int64Array) -> UInt8Array:
        vectors, lists = np.ascontiguousarray(vectors_ND, np.float32), np.ascontiguousarray(list_N)
        codes = np.empty((vectors.shape[0], int(self.base.code_size)), np.uint8)
        if vectors.shape[0]:
            given = [faiss.swig_ptr(array) for array in (vectors, lists, codes)]
            self.base.encode_vectors(vectors.shape[0], *given)
        return codes

    def _searchable(self, table: npt.NDArray[np.uint64], blocks: npt.NDArray[np.object_]) -> tuple[Any, Any]:
        """Faiss's index over the blocks, and what it points to."""
        # Faiss's lists on a disk are places relative to one address: here to 0, and nothing is on a disk.
        replaced: Any = faiss.OnDiskInvertedLists()
        replaced.nlist, replaced.code_size = int(self.base.nlist), int(self.base.code_size)
        replaced.prefetch_nthread, replaced.read_only = 0, True
        replaced.lists.resize(table.shape[0])
        faiss.memcpy(replaced.lists.data(), faiss.swig_ptr(table), table.nbytes)
        lists: Any = faiss.MaskedInvertedLists(replaced, self.base.invlists)  # type: ignore[attr-defined]
        ivf = without_items(self.base)
        ivf.replace_invlists(lists, False)
        ivf.ntotal = self.base.ntotal
        return ivf, (replaced, lists, table, blocks)


def _others(rows: Int64Array, gone: Int64Array) -> npt.NDArray[np.bool_]:
    if gone.shape[0] > _FEW:
        return np.isin(rows, gone, invert=True)
    stays = np.ones(rows.shape[0], np.bool_)
    for row in gone:
        stays &= rows != row
    return stays


def _block(codes: UInt8Array, rows: Int64Array) -> UInt8Array:
    """Codes, then row numbers, in one piece of memory."""
    if not rows.shape[0]:
        codes, rows = np.zeros((1, codes.shape[1]), np.uint8), np.full(1, -1, np.int64)
    capacity, width = _capacity(rows.shape[0]), codes.shape[1]
    block = np.empty(capacity * (width + _ROW_BYTES), np.uint8)
    block[: codes.size] = codes.reshape(-1)
    block[capacity * width :].view(np.int64)[: rows.shape[0]] = rows
    return block


def _capacity(rows: int) -> int:
    """Room for rows such that row numbers begin at a multiple of 8 bytes."""
    return -(-rows // _ROW_BYTES) * _ROW_BYTES
