"""The rows of one rank: keys, values, optimizer state, frequency, last-seen time, and changes. No collectives.

Shape letters: K keys of a call, C rows of capacity, D columns.

A row's local number is fixed while its key exists. The number of a removed row is reused for a later key, which
inherits nothing from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.tables.change_log import ChangeLog
from cluster.tables.row_optimizer import RowOptimizer
from model.embedding import initial_rows
from model.key_index import KeyIndex
from model.reserved_memory import GrowingArray, machine_bytes
from model.transfer import to_device
from streaming.arrays import Float64Array, Int16Array, Int64Array

# Bits of a row's mark: changed since `take_changes`; did not exist then.
_CHANGED, _NEW = np.uint8(1), np.uint8(2)
_FIRST_ROOM = 1024


@dataclass(frozen=True)
class FreshRows:
    """New rows whose values are not set yet."""

    rows: Tensor
    """int64 (K,), local numbers."""
    values_KD: Tensor
    """float32, their initial values."""


class LocalRows:
    """Rows in one matrix that grows in place on a CPU, and by copying on a GPU.

    `values_CD`, `state`, `frequency_C` and `last_seen_ms_C` have unused entries; `rows()` returns the used ones.
    """

    def __init__(
        self, dim: int, optimizer: RowOptimizer, *, seed: int, device: torch.device, init_std: float = 0.02
    ) -> None:
        self.dim, self.seed, self.init_std = dim, seed, init_std
        self.device, self.optimizer = device, optimizer
        self.index = KeyIndex()
        self.log: ChangeLog | None = None
        """Records changes for deltas of the live version, beside those for checkpoints; None: not recorded."""
        most = machine_bytes() // (4 * dim)
        shapes = optimizer.state_shapes(dim)
        self._memory = {
            "frequency": GrowingArray(most, (), np.float64),
            "last_seen_ms": GrowingArray(most, (), np.int64),
            "changed": GrowingArray(most, (), np.uint8),
        }
        if device.type == "cpu":
            self._memory["values"] = GrowingArray(most, (dim,), np.float32)
            for name, (shape, dtype) in shapes.items():
                self._memory[name] = GrowingArray(most, shape, torch.empty(0, dtype=dtype).numpy().dtype)
        self.values_CD = torch.zeros(0, dim, device=device)
        self.state = {
            name: torch.zeros(0, *shape, dtype=dtype, device=device)
            for name, (shape, dtype) in shapes.items()
        }
        self._take_room(0)
        self._removed: list[tuple[Int16Array, Int64Array]] = []

    def __len__(self) -> int:
        return len(self.index)

    def rows(self) -> Int64Array:
        """Local numbers of existing rows, int64, ascending. A removed row's number is missing until it is reused."""
        return self.index.rows()

    def keys_of(self, rows: Int64Array) -> tuple[Int16Array, Int64Array]:
        """Tables int16 (n,) and ids int64 (n,) of existing rows."""
        return self.index.keys_of(rows)

    def add(self, tables: Int16Array, ids: Int64Array, time_ms: int = 0) -> Int64Array:
        """Local numbers of keys that this rank owns; new rows get their initial values and `time_ms` as last seen."""
        local, fresh = self.make(tables, ids, time_ms)
        if fresh.rows.shape[0]:
            self.fill(to_device(fresh, self.device))
        return local

    def make(self, tables: Int16Array, ids: Int64Array, time_ms: int = 0) -> tuple[Int64Array, FreshRows]:
        """Like `add`, but the caller sets the values of new rows with `fill`, on the rows' device."""
        local, made = self.index.get_or_add(tables, ids)
        new = local[made]
        if made.shape[0]:
            self._make_room(self.index.top)
            self.last_seen_ms_C[new] = time_ms
            self.changed_C[new] = _CHANGED | _NEW
            if self.log is not None:
                self.log.touch(new)
        return local, FreshRows(torch.from_numpy(new), self.initial(tables[made], ids[made]))

    def fill(self, fresh: FreshRows) -> None:
        """Set the initial values of new rows, on the rows' device."""
        self.values_CD.index_copy_(0, fresh.rows, fresh.values_KD)

    def remove(self, tables: Int16Array, ids: Int64Array) -> int:
        """Remove keys that this rank owns with everything in their rows; returns the number of rows removed."""
        local = self.index.remove(tables, ids)
        had = local >= 0
        gone = local[had]
        if gone.shape[0] == 0:
            return 0
        known = self.changed_C[gone] & _NEW == 0
        self._removed.append((tables[had][known], ids[had][known]))
        if self.log is not None:
            self.log.remove(gone, tables[had], ids[had])
        where = torch.from_numpy(gone).to(self.device)
        for tensor in (self.values_CD, *self.state.values()):
            tensor.index_fill_(0, where, 0)
        for array in (self.frequency_C, self.last_seen_ms_C, self.changed_C):
            array[gone] = 0
        return int(gone.shape[0])

    def load(
        self,
        tables: Int16Array,
        ids: Int64Array,
        values_KD: Tensor,
        state: Mapping[str, Tensor],
        frequency_K: Float64Array,
        last_seen_ms_K: Int64Array,
    ) -> None:
        """Set rows that this rank owns from a checkpoint, replacing existing ones; does not mark them as changed.

        Args:
            tables: int16 (K,).
            ids: int64 (K,); no key twice.
            values_KD: float32 (K, D), on the CPU.
            state: the optimizer's, by name as in `state`, K entries each, on the CPU.
            frequency_K: float64.
            last_seen_ms_K: int64.
        """
        local = self.index.add(tables, ids)
        self._make_room(self.index.top)
        names = list(self.state)
        given = (torch.from_numpy(local), values_KD, tuple(state[name] for name in names))
        where, values, moved = to_device(given, self.device)
        self.values_CD.index_copy_(0, where, values)
        for name, entries in zip(names, moved, strict=True):
            self.state[name].index_copy_(0, where, entries)
        self.frequency_C[local] = frequency_K
        self.last_seen_ms_C[local] = last_seen_ms_K
        self.changed_C[local] = 0

    @property
    def changed_count(self) -> int:
        """How many rows `take_changes` would return."""
        return int(np.count_nonzero(self.changed_C[: self.index.top]))

    def take_changes(self) -> tuple[Int64Array, tuple[Int16Array, Int64Array]]:
        """The changes since the last call, for delta checkpoints; clears them.

        Returns:
            Local numbers of the rows that are new or whose value, state, frequency or last-seen time changed, int64,
            ascending; and the keys (tables int16, ids int64) that had a row at the last call but no longer do. No key
            is in both.
        """
        changed = np.flatnonzero(self.changed_C[: self.index.top])
        self.changed_C[changed] = 0
        removed = KeyIndex()
        for part in self._removed:
            removed.add(*part)
        self._removed = []
        tables, ids = removed.keys()
        gone = self.index.find(tables, ids) < 0
        return changed, (tables[gone], ids[gone])

    def untouched(self, rows: Int64Array) -> npt.NDArray[np.bool_]:
        """Which of these local numbers still hold the row that they held at the last `take_changes`, bool (n,)."""
        lives = self.index.find(*self.index.keys_of(rows)) == rows
        found: npt.NDArray[np.bool_] = lives & (self.changed_C[rows] == 0)
        return found

    def mark_changed(self, rows: Int64Array) -> None:
        """Mark rows whose value, state, frequency or last-seen time has changed."""
        self.changed_C[rows] |= _CHANGED
        if self.log is not None:
            self.log.touch(rows)

    def initial(self, tables: Int16Array, ids: Int64Array) -> Tensor:
        """Initial values of these keys' rows, float32 (K, D), on the CPU."""
        return torch.from_numpy(initial_rows(tables, ids, self.dim, self.seed, self.init_std))

    def put(self, rows: Int64Array, values_KD: Tensor) -> None:
        """Set values of rows, from the CPU or the rows' device; does not mark them as changed."""
        where = torch.from_numpy(rows)
        if values_KD.device.type == "cpu":
            where, values_KD = to_device((where, values_KD), self.device)
        self.values_CD.index_copy_(0, where.to(self.device), values_KD)

    def _make_room(self, size: int) -> None:
        room = self.values_CD.shape[0]
        if size > room:
            self._take_room(max(size, room * 3 // 2, _FIRST_ROOM))

    def _take_room(self, room: int) -> None:
        self.frequency_C = self._memory["frequency"].first(room)
        self.last_seen_ms_C = self._memory["last_seen_ms"].first(room)
        self.changed_C = self._memory["changed"].first(room)
        if self.device.type == "cpu":
            self.values_CD = torch.from_numpy(self._memory["values"].first(room))
            self.state = {name: torch.from_numpy(self._memory[name].first(room)) for name in self.state}
            return
        # One tensor after another, each freed before the next grows, to keep a step's peak memory low.
        self.values_CD = _with_room(self.values_CD, room)
        for name in self.state:
            self.state[name] = _with_room(self.state[name], room)


def _with_room(tensor: Tensor, room: int) -> Tensor:
    grown = tensor.new_empty(room, *tensor.shape[1:])
    grown[: tensor.shape[0]].copy_(tensor)
    grown[tensor.shape[0] :].zero_()
    return grown
