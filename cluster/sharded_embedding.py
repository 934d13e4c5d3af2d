"""Embedding rows that each exist on exactly one rank, looked up and updated across ranks.

Shape letters: U unique keys that this rank asks for, R keys that this rank is asked for, C rows it has room
for, D columns.

    keys ► owner rank ► all-to-all ► local rows ► all-to-all ► rows_UD        (lookup)
    rows_UD.grad ► all-to-all ► sum per row ► row optimizer on touched rows    (apply_gradients)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.buckets import buckets_of, owners_of
from cluster.collectives import Collectives
from cluster.row_optimizer import RowOptimizer
from model.embedding import initial_rows
from model.key_index import KeyIndex

Int64Array = npt.NDArray[np.int64]
Int16Array = npt.NDArray[np.int16]

# Bits of a row's mark: it changed since `take_changes`; it had not been there then.
_CHANGED, _NEW = np.uint8(1), np.uint8(2)


@dataclass(frozen=True)
class Lookup:
    """The rows of one step and the way back for their gradients."""

    rows_UD: Tensor
    """float32 (1 + U, D); row 0 is the zero padding row, key k has row k + 1."""
    order_U: Tensor
    send: list[int]
    receive: list[int]
    local_R: Int64Array


class ShardedEmbedding:
    """This rank's share of all tables; collective calls are marked so."""

    def __init__(
        self,
        dim: int,
        collectives: Collectives,
        optimizer: RowOptimizer,
        *,
        seed: int,
        device: torch.device,
        init_std: float = 0.02,
    ) -> None:
        self.dim = dim
        self.seed = seed
        self.init_std = init_std
        self.device = device
        self.optimizer = optimizer
        self.index = KeyIndex()
        self.values_CD = torch.empty(0, dim, device=device)
        self.state = {
            name: torch.empty(0, *shape, dtype=dtype, device=device)
            for name, (shape, dtype) in optimizer.state_shapes(dim).items()
        }
        self.frequency_C = np.zeros(0, np.float64)
        self.last_seen_ms_C = np.zeros(0, np.int64)
        self._changed_C = np.zeros(0, np.uint8)
        self._removed: list[tuple[Int16Array, Int64Array]] = []
        self._collectives = collectives

    def __len__(self) -> int:
        return len(self.index)

    def rows(self) -> Int64Array:
        """Local numbers of the rows that live, int64, ascending. A removed row leaves a hole until it is used again."""
        return np.arange(len(self.index), dtype=np.int64)

    def keys_of(self, rows: Int64Array) -> tuple[Int16Array, Int64Array]:
        """Tables int16 (n,) and ids int64 (n,) of living rows."""
        tables, ids = self.index.keys()
        return tables[rows], ids[rows]

    def take_changes(self) -> tuple[Int64Array, tuple[Int16Array, Int64Array]]:
        """What changed since the last call, and forget it: for delta checkpoints.

        Returns:
            Local numbers of the rows that are new or whose value, state, frequency or last-seen time changed, int64,
            ascending; and the keys (tables int16, ids int64) that had a row at the last call and have none now. No key
            is in both.
        """
        changed = np.flatnonzero(self._changed_C)
        self._changed_C[changed] = 0
        removed = self._removed
        self._removed = []
        tables = np.concatenate([np.zeros(0, np.int16), *(part[0] for part in removed)])
        ids = np.concatenate([np.zeros(0, np.int64), *(part[1] for part in removed)])
        gone = self.index.find(tables, ids) < 0
        return changed, (tables[gone], ids[gone])

    def mark_all_changed(self) -> None:
        """The next `take_changes` gives every living row, as after a checkpoint that was not committed."""
        self._changed_C[self.rows()] |= _CHANGED

    def load(
        self,
        tables: Int16Array,
        ids: Int64Array,
        values_KD: Tensor,
        state: Mapping[str, Tensor],
        frequency_K: npt.NDArray[np.float64],
        last_seen_ms_K: Int64Array,
    ) -> None:
        """Put rows that this rank owns as a checkpoint holds them, over what a key has already; marks nothing.

        Args:
            tables: int16 (K,).
            ids: int64 (K,); no key twice.
            values_KD: float32 (K, D).
            state: the optimizer's, by name as in `state`, K entries each.
            frequency_K: float64.
            last_seen_ms_K: int64.
        """
        local = self.add(tables, ids)
        where = torch.from_numpy(local).to(self.device)
        self.values_CD[where] = values_KD.to(self.device)
        for name, tensor in self.state.items():
            tensor[where] = state[name].to(self.device)
        self.frequency_C[local] = frequency_K
        self.last_seen_ms_C[local] = last_seen_ms_K
        self._changed_C[local] = 0

    def owners(self, tables: Int16Array, ids: Int64Array) -> Int64Array:
        """The rank that owns each key."""
        return owners_of(buckets_of(tables, ids), self._collectives.world)

    def lookup(self, tables: Int16Array, ids: Int64Array, *, create: bool = True) -> Lookup:
        """Collective. The rows of unique keys, wherever they live; new ones are made by their owners.

        With `create=False` a key without a row gets the values it would start from, and no row.
        """
        comm = self._collectives
        owners_U = self.owners(tables, ids)
        order_U = np.argsort(owners_U, kind="stable")
        send = np.bincount(owners_U, minlength=comm.world)
        receive = comm.exchange(send.astype(np.float64))[:, comm.rank].astype(np.int64)
        keys_U2 = torch.from_numpy(np.stack([tables[order_U].astype(np.int64), ids[order_U]], axis=1))
        keys_R2 = comm.all_to_all(keys_U2, send.tolist(), receive.tolist()).numpy()
        local_R, rows_RD = self._local_rows(
            np.ascontiguousarray(keys_R2[:, 0].astype(np.int16)), np.ascontiguousarray(keys_R2[:, 1]), create
        )
        sorted_UD = comm.all_to_all(rows_RD, receive.tolist(), send.tolist())
        rows_UD = torch.zeros(1 + ids.shape[0], self.dim, device=self.device)
        positions_U = torch.from_numpy(order_U).to(self.device)
        rows_UD.index_copy_(0, positions_U + 1, sorted_UD)
        return Lookup(rows_UD.requires_grad_(create), positions_U, send.tolist(), receive.tolist(), local_R)

    def apply_gradients(self, lookup: Lookup, learning_rate: float) -> None:
        """Collective. Send row gradients to their owners, add up what the ranks sent, step once per row."""
        gradient = lookup.rows_UD.grad
        if gradient is None:
            gradient = torch.zeros_like(lookup.rows_UD)
        sorted_UD = gradient[1:].index_select(0, lookup.order_U)
        received_RD = self._collectives.all_to_all(sorted_UD, lookup.send, lookup.receive)
        if lookup.local_R.shape[0] == 0:
            return
        touched, inverse = np.unique(lookup.local_R, return_inverse=True)
        self._changed_C[touched] |= _CHANGED
        total = torch.zeros(touched.shape[0], self.dim, device=self.device)
        total.index_add_(0, torch.from_numpy(inverse).to(self.device), received_RD)
        index = torch.from_numpy(touched).to(self.device)
        self.optimizer.update(self.values_CD, self.state, index, total, learning_rate)

    def count(
        self, tables: Int16Array, ids: Int64Array, weights: npt.NDArray[np.float64], time_ms: int
    ) -> None:
        """Add to the frequency of keys that this rank owns; makes their rows."""
        local = self.add(tables, ids)
        self.frequency_C[local] += weights
        self.last_seen_ms_C[local] = np.maximum(self.last_seen_ms_C[local], time_ms)
        self._changed_C[local] |= _CHANGED

    def frequencies(self, tables: Int16Array, ids: Int64Array) -> npt.NDArray[np.float64]:
        """How often keys that this rank owns have been counted, float64 (K,); 0 for a key without a row."""
        local = self.index.find(tables, ids)
        return np.where(local >= 0, self.frequency_C[np.maximum(local, 0)] if len(self) else 0.0, 0.0)

    def add(self, tables: Int16Array, ids: Int64Array) -> Int64Array:
        """Local row numbers of keys that this rank owns; a new row starts from (seed, table, id) alone."""
        before = len(self.index)
        local = self.index.add(tables, ids)
        size = len(self.index)
        if size > before:
            self._reserve(size)
            all_tables, all_ids = self.index.keys()
            self.values_CD[before:size] = self._initial(all_tables[before:size], all_ids[before:size])
            self._changed_C[before:size] = _CHANGED | _NEW
        return local

    def _local_rows(self, tables: Int16Array, ids: Int64Array, create: bool) -> tuple[Int64Array, Tensor]:
        if create:
            local = self.add(tables, ids)
            return local, self.values_CD.index_select(0, torch.from_numpy(local).to(self.device))
        local = self.index.find(tables, ids)
        rows = self._initial(tables, ids)
        known = torch.from_numpy(np.flatnonzero(local >= 0)).to(self.device)
        rows[known] = self.values_CD[torch.from_numpy(local[local >= 0]).to(self.device)]
        return local, rows

    def _initial(self, tables: Int16Array, ids: Int64Array) -> Tensor:
        fresh = initial_rows(tables, ids, self.dim, self.seed, self.init_std)
        return torch.from_numpy(fresh).to(self.device)

    def _reserve(self, size: int) -> None:
        room = self.values_CD.shape[0]
        if size <= room:
            return
        extra = max(size, room * 3 // 2, 1024) - room
        self.values_CD = torch.cat([self.values_CD, self.values_CD.new_zeros(extra, self.dim)])
        for name, tensor in self.state.items():
            self.state[name] = torch.cat([tensor, tensor.new_zeros(extra, *tensor.shape[1:])])
        self.frequency_C = np.concatenate([self.frequency_C, np.zeros(extra)])
        self.last_seen_ms_C = np.concatenate([self.last_seen_ms_C, np.zeros(extra, np.int64)])
        self._changed_C = np.concatenate([self._changed_C, np.zeros(extra, np.uint8)])
