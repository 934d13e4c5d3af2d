"""Changed rows above frozen ones: each change makes a new view, and views share everything but what changed.

Shape letters: K keys of a call, D columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cluster.tables.frozen_rows import FrozenRows, RowSettings, RowWidthError, rows_or_defaults
from model.key_index import KeyIndex
from streaming.arrays import BoolArray, Float32Array, Int16Array, Int64Array
from streaming.levels import with_level

_OVERLAID = np.int64(1 << 62)
"""Set in the place of a row in a level; the level's number is above `_LEVEL_BITS`."""
_LEVEL_BITS = 40


@dataclass(frozen=True)
class RowChanges:
    """What happened to rows since an earlier state; removals come before the rows.

    Attributes:
        tables: int16 (n,), of the rows.
        ids: int64 (n,).
        values: float32 (n, D).
        removed_tables: int16 (m,), of keys that no longer have a row.
        removed_ids: int64 (m,).
    """

    tables: Int16Array
    ids: Int64Array
    values: Float32Array
    removed_tables: Int16Array
    removed_ids: Int64Array

    @staticmethod
    def joined(parts: Sequence[RowChanges]) -> RowChanges:
        """One object from several, of which one at least must be given; no two have the same key."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return RowChanges(*(np.concatenate(column) for column in columns))


class OverlaidRows:
    """The rows of a version with later changes; immutable, so any number of threads may read it.

    Args:
        base: the version's.
        levels: see `with_changes`.
    """

    def __init__(self, base: FrozenRows, levels: tuple[_Level, ...] = ()) -> None:
        self._base, self._levels = base, levels

    @property
    def settings(self) -> RowSettings:
        """See PlacedRows."""
        return self._base.settings

    def with_changes(self, changes: RowChanges) -> OverlaidRows:
        """The rows after some changes; this view stays as it is.

        Raises:
            RowWidthError: the changes have another number of columns.
        """
        if changes.ids.shape[0] + changes.removed_ids.shape[0] == 0:
            return self
        if changes.values.shape[1] != self.settings.dim:
            raise RowWidthError(
                f"changed rows have dimension {changes.values.shape[1]}, but the version's have {self.settings.dim}"
            )
        return OverlaidRows(self._base, with_level(self._levels, _Level.of(changes), _Level.merged))

    def rows_of(self, tables: Int16Array, ids: Int64Array) -> Tensor:
        """As `FrozenRows.rows_of`, of the rows after the changes."""
        return rows_or_defaults(self, tables, ids)

    def find(self, tables: Int16Array, ids: Int64Array) -> Int64Array:
        """See PlacedRows."""
        place_K = np.full(ids.shape[0], -1, np.int64)
        rest = np.arange(ids.shape[0])
        for number in reversed(range(len(self._levels))):
            row, removed = self._levels[number].find(tables[rest], ids[rest])
            found = row >= 0
            place_K[rest[found]] = _OVERLAID | np.int64(number << _LEVEL_BITS) | row[found]
            rest = rest[~found & ~removed]
        place_K[rest] = self._base.find(tables[rest], ids[rest])
        return place_K

    def gather(self, place_K: Int64Array, out_KD: Float32Array) -> None:
        """See PlacedRows."""
        is_overlaid_K = place_K >= _OVERLAID
        self._base.gather(np.where(is_overlaid_K, -1, place_K), out_KD)
        at = np.flatnonzero(is_overlaid_K)
        number_K = (place_K[at] ^ _OVERLAID) >> _LEVEL_BITS
        for number in np.unique(number_K).tolist():
            some = at[number_K == number]
            out_KD[some] = self._levels[number].values_KD[place_K[some] & ((1 << _LEVEL_BITS) - 1)]


@dataclass(frozen=True)
class _Level:
    """The last change of each of its keys."""

    keys: KeyIndex
    values_KD: Float32Array
    removed_K: BoolArray

    @staticmethod
    def of(changes: RowChanges) -> _Level:
        nothing_KD = np.zeros((changes.removed_ids.shape[0], changes.values.shape[1]), np.float32)
        return _Level._last_of_each(
            np.concatenate([changes.removed_tables, changes.tables]),
            np.concatenate([changes.removed_ids, changes.ids]),
            np.concatenate([nothing_KD, changes.values]),
            np.arange(nothing_KD.shape[0] + changes.ids.shape[0]) < nothing_KD.shape[0],
        )

    @staticmethod
    def merged(older: _Level, newer: _Level) -> _Level:
        (tables, ids), (newer_tables, newer_ids) = older.keys.keys(), newer.keys.keys()
        return _Level._last_of_each(
            np.concatenate([tables, newer_tables]),
            np.concatenate([ids, newer_ids]),
            np.concatenate([older.values_KD, newer.values_KD]),
            np.concatenate([older.removed_K, newer.removed_K]),
        )

    @staticmethod
    def _last_of_each(
        tables: Int16Array, ids: Int64Array, values_KD: Float32Array, removed_K: BoolArray
    ) -> _Level:
        keys = KeyIndex(ids.shape[0])
        row_K = keys.add(tables, ids)
        if len(keys) < ids.shape[0]:
            last = np.empty(len(keys), np.int64)
            last[row_K] = np.arange(ids.shape[0])  # of several values for one place, NumPy keeps the last
            values_KD, removed_K = values_KD[last], removed_K[last]
        return _Level(keys, values_KD, removed_K)

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, tables: Int16Array, ids: Int64Array) -> tuple[Int64Array, BoolArray]:
        """The place of each key's row, -1 without one, and whether the key was removed."""
        row_K = self.keys.find(tables, ids)
        removed_K = (row_K >= 0) & self.removed_K[row_K]
        return np.where(removed_K, -1, row_K), removed_K
