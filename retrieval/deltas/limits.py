"""Whether a full refresh is due because of what deltas have changed, and by which limit.

Shape letters: N items, L lists.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrieval.arrays import Float32Array, Int64Array
from retrieval.config import IndexConfig
from retrieval.deltas.base_vectors import BaseVectors
from retrieval.deltas.changed_items import ChangedItems
from retrieval.indexes.ivf import IvfIndex


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
    """Measures what deltas have changed; the cost is that of their items, not of the version's.

    Args:
        index: of the version.
        base: vectors of the version.
    """

    def __init__(self, index: IvfIndex, base: BaseVectors) -> None:
        self._base = base
        self._length_L = index.list_lengths()

    def measure(self, items: ChangedItems) -> Change:
        """What has changed up to some delta of the same version."""
        return Change(items.share, self._drift(items), self._imbalance(items))

    def _drift(self, items: ChangedItems) -> float:
        new = items.new.items()
        order = np.argsort(new.ids)
        rows = items.rows.find(new.ids[order])
        moved = new.vectors[order[np.isin(new.ids[order], items.ids[rows])]]
        if not rows.shape[0]:
            return 0.0
        before = self._base.of_rows(rows)
        products: Float32Array = np.einsum("nd,nd->n", moved, before)
        norms = np.linalg.norm(moved, axis=1) * np.linalg.norm(before, axis=1)
        cosines = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
        return float((1 - cosines).sum()) / int(items.index.size)

    def _imbalance(self, items: ChangedItems) -> float:
        more_L = np.bincount(items.new.items().list_N, minlength=self._length_L.shape[0])
        return _imbalance(self._length_L + more_L) / _imbalance(self._length_L)


def _imbalance(length_L: Int64Array) -> float:
    """Items in the list of a random item / items in a list of mean length."""
    length = length_L.astype(np.float64)
    return float((length**2).sum()) * int(length.shape[0]) / max(1.0, float(length.sum())) ** 2
