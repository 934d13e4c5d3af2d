"""The rows of a version as a run has changed them since; each change costs its own rows only.

Shape letters: K keys of a call, C rows of capacity, D columns.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from cluster.tables.frozen_rows import FrozenRows, RowSettings, rows_or_defaults
from cluster.tables.overlaid_rows import RowChanges
from model.key_index import KeyIndex
from model.reserved_memory import GrowingArray, machine_bytes
from streaming.arrays import Float32Array, Int16Array, Int64Array

_CHANGED = np.int64(1 << 62)
"""Set in the place of a changed row; a place in the version's files is lower."""


class LatestRows:
    """For the one thread that changes and reads it; readers of a version have `OverlaidRows`.

    Args:
        base: the version's rows.
    """

    def __init__(self, base: FrozenRows) -> None:
        self._base, self._keys = base, KeyIndex()
        most = machine_bytes() // (4 * base.settings.dim)
        self._values = GrowingArray(most, (base.settings.dim,), np.float32)
        self._removed = GrowingArray(most, (), np.bool_)

    @property
    def settings(self) -> RowSettings:
        """See PlacedRows."""
        return self._base.settings

    def change(self, changes: RowChanges) -> None:
        """Apply what happened since the last call."""
        gone = self._keys.add(changes.removed_tables, changes.removed_ids)
        self._removed.first(self._keys.top)[gone] = True
        rows = self._keys.add(changes.tables, changes.ids)
        self._removed.first(self._keys.top)[rows] = False
        self._values.first(self._keys.top)[rows] = changes.values

    def rows_of(self, tables: Int16Array, ids: Int64Array) -> Tensor:
        """As `FrozenRows.rows_of`."""
        return rows_or_defaults(self, tables, ids)

    def find(self, tables: Int16Array, ids: Int64Array) -> Int64Array:
        """See PlacedRows."""
        row_K = self._keys.find(tables, ids)
        changed = row_K >= 0
        place_K = row_K | _CHANGED
        place_K[changed & self._removed.first(max(1, self._keys.top))[row_K]] = -1
        place_K[~changed] = self._base.find(tables[~changed], ids[~changed])
        return place_K

    def gather(self, place_K: Int64Array, out_KD: Float32Array) -> None:
        """See PlacedRows."""
        changed = place_K >= _CHANGED
        self._base.gather(np.where(changed, -1, place_K), out_KD)
        out_KD[changed] = self._values.first(max(1, self._keys.top))[place_K[changed] ^ _CHANGED]
