"""Whether a full refresh is due because of what deltas have changed, and by which limit.

Shape letters: N items, L lists, D columns, C entries of capacity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from retrieval.arrays import Float32Array, Float64Array, Int64Array
from retrieval.config import IndexConfig
from retrieval.deltas.base_vectors import BaseVectors
from retrieval.deltas.superseded import RowsById, RowSet

_ASSIGNED = 128
"""Comparing a vector with 4,000 centroids takes 20 µs."""


@dataclass(frozen=True)
class Change:
    """What the deltas of a version have changed.

    Attributes:
        share: items in them, or items of the version that they replaced or deleted, whichever are more, / items of
            the version.
        drift: mean of 1 - cosine between the moved items' vectors and those in the version, times their share.
        imbalance: of the lists with the deltas' items / of the version's lists (1 = the same).
    """

    share: float
    drift: float
    imbalance: float


@dataclass(frozen=True)
class Due:
    """A limit that the deltas have passed.

    Attributes:
        limit: share, drift or imbalance.
        value: what was measured.
        bound: the setting's value.
    """

    limit: str
    value: float
    bound: float

    def in_words(self) -> str:
        """Which limit, its figure, and its setting."""
        return f"{self.limit} of the deltas is {self.value:.4g} (index.max_delta_{self.limit}={self.bound:g})"


def refresh_due(change: Change, config: IndexConfig) -> Due | None:
    """The first limit that is passed; None if none is."""
    for limit, value in vars(change).items():
        bound = getattr(config, f"max_delta_{limit}")
        if value > bound:
            return Due(limit, value, bound)
    return None


class ChangeMeter:
    """Measures what the deltas of a version have changed; each costs what its own items cost.

    Of a large delta, the lists of some items stand for those of all.

    Args:
        length_L: int64, of the version's lists.
        lists_of: the list of each vector, int64 (N,).
        item_ids: int64, the id of each row of the version.
        base: vectors of the version.
    """

    def __init__(
        self,
        length_L: Int64Array,
        lists_of: Callable[[Float32Array], Int64Array],
        item_ids: Int64Array,
        base: BaseVectors,
    ) -> None:
        self._lists_of, self._base = lists_of, base
        self._ids, self._rows = item_ids, RowsById(item_ids)
        self._superseded = RowSet.empty(item_ids.shape[0])
        self._imbalance_before = _imbalance(length_L.astype(np.float64))
        self._length_L = length_L.astype(np.float64)
        self._place_of: dict[int, int] = {}
        self._brought = _Brought.none()
        self.items = 0
        """Items that the deltas brought and did not delete again."""

    def add(self, item_ids: Int64Array, vectors_ND: Float32Array, deleted: Int64Array) -> Change:
        """What has changed, with one more delta.

        Args:
            item_ids: int64 (N,), distinct.
            vectors_ND: float32.
            deleted: int64, ids of other items.
        """
        gone = np.concatenate([item_ids, deleted])
        self._superseded = self._superseded.with_rows(self._rows.find(gone))
        known = [self._place_of[item] for item in gone.tolist() if item in self._place_of]
        self._count(np.array(known, np.int64), -1)
        if item_ids.shape[0]:
            at = [self._place_of.setdefault(item, len(self._place_of)) for item in item_ids.tolist()]
            places = np.array(at, np.int64)
            self._brought.put(places, len(self._place_of), self._described(item_ids, vectors_ND))
            self._count(places, 1)
        size = max(1, self._ids.shape[0])
        drift = float(self._brought.drift_C.sum()) / size
        imbalance = _imbalance(self._length_L) / self._imbalance_before
        return Change(max(self.items, self._superseded.size) / size, drift, imbalance)

    def _count(self, at: Int64Array, sign: int) -> None:
        """Add items to the totals, or take away those that are there, and forget what is known of them."""
        there = at[self._brought.weight_C[at] >= 0] if sign < 0 else at
        np.add.at(self._length_L, self._brought.list_C[there], sign * self._brought.weight_C[there])
        self.items += sign * int(there.shape[0])
        if sign < 0:
            self._brought.weight_C[there], self._brought.drift_C[there] = -1.0, 0.0

    def _described(self, item_ids: Int64Array, vectors_ND: Float32Array) -> _Brought:
        count = item_ids.shape[0]
        list_N, weight_N, drift_N = np.zeros(count, np.int64), np.zeros(count), np.zeros(count)
        some = np.linspace(0, count, min(_ASSIGNED, count), endpoint=False).astype(np.int64)
        list_N[some], weight_N[some] = self._lists_of(vectors_ND[some]), count / some.shape[0]
        rows = self._rows.find(item_ids)
        moved = np.isin(item_ids, self._ids[rows])
        drift_N[moved] = 1 - _cosines(vectors_ND[moved], self._base.of_rows(rows))
        return _Brought(list_N, weight_N, drift_N)


@dataclass
class _Brought:
    """Of each item that deltas brought: its list, how many items it stands for there (-1: gone), and its drift."""

    list_C: Int64Array
    weight_C: Float64Array
    drift_C: Float64Array

    @staticmethod
    def none() -> _Brought:
        return _Brought(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))

    def put(self, at: Int64Array, size: int, items: _Brought) -> None:
        for name, values in vars(items).items():
            column = getattr(self, name)
            if size > column.shape[0]:
                room = np.zeros(size * 3 // 2, column.dtype)
                room[: column.shape[0]] = column
                column = room
                setattr(self, name, column)
            column[at] = values


def _cosines(vectors_ND: Float32Array, others_ND: Float32Array) -> Float64Array:
    products = np.einsum("nd,nd->n", vectors_ND, others_ND).astype(np.float64)
    norms = np.linalg.norm(vectors_ND, axis=1) * np.linalg.norm(others_ND, axis=1)
    found: Float64Array = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
    return found


def _imbalance(length_L: Float64Array) -> float:
    """Items in the list of a random item / items in a list of mean length."""
    return float((length_L**2).sum()) * int(length_L.shape[0]) / max(1.0, float(length_L.sum())) ** 2
