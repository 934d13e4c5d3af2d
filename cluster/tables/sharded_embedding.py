"""Embedding rows that each exist on exactly one rank, looked up and updated across ranks.

Shape letters: U unique keys that this rank requests, R keys requested from this rank, T rows that a step touches, C
rows of capacity, D columns.

    keys ► owner rank ► all-to-all ► local rows ► all-to-all ► rows_UD        (lookup)
    rows_UD.grad ► all-to-all ► sum per row ► row optimizer on touched rows    (apply_gradients)

With `table.admit_after` above 1, a user or item that has not been seen often enough reads and trains a row shared by
its table and bucket (`shared_keys`), and is counted in `waiting`. Once admitted, its own row starts as a copy of the
shared one, which its events helped to train, or new (`table.admitted_start`).

Rows are removed only by `sweep` and `forget`, between steps; `apply_gradients` refuses a lookup from before a removal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from cluster.collectives import Collectives
from cluster.tables.buckets import ENDLESS, buckets_of, owners_of, shared_keys, sort_by_owner
from cluster.tables.config import TableConfig
from cluster.tables.local_rows import FreshRows, LocalRows
from cluster.tables.row_optimizer import RowOptimizer
from cluster.tables.surplus import as_orders, lowest
from cluster.tables.waiting_keys import WaitingKeys
from model.features import ITEM
from model.key_index import KeyIndex
from model.transfer import to_device
from streaming.arrays import BoolArray, Float64Array, Int16Array, Int64Array

_Inputs = TypeVar("_Inputs")

_DRAWN = np.int64(1 << 32)
"""Flag in a requested key's table: no event has this key, it was drawn as a negative."""


class StaleLookupError(RuntimeError):
    """Rows were removed between a lookup and its gradients; removals must happen between steps."""


@dataclass(frozen=True)
class Asked:
    """The keys that the ranks requested from this one.

    Attributes:
        local_R: local row of each key, its own or the shared one; -1 if there is none.
        seen_R: whether an event has the key; false if it was only drawn as a negative.
        waiting: tables int16 and ids int64 of the distinct seen keys without a row of their own.
    """

    local_R: Int64Array
    seen_R: BoolArray
    waiting: tuple[Int16Array, Int64Array]


@dataclass(frozen=True)
class Lookup:
    """The rows of one step, and where to send their gradients."""

    rows_UD: Tensor
    """float32 (1 + U, D); row 0 is the zero padding row, key k has row k + 1."""
    order_U: Tensor
    """int64, the keys' order by owner, on the rows' device; empty with a single rank."""
    index_R: Tensor
    """int64, `local_R` on the rows' device; empty if rows were only read."""
    send: list[int]
    receive: list[int]
    asked: Asked
    time_ms: int
    removals: int
    """Number of removals before this lookup."""

    @property
    def local_R(self) -> Int64Array:
        """Local row of each key requested from this rank."""
        return self.asked.local_R


class ShardedEmbedding(LocalRows):
    """This rank's share of all tables. Collective calls are marked.

    An item's frequency is the summed weight of its events (`count`); any other key's is the number of steps with it.
    """

    def __init__(
        self,
        dim: int,
        collectives: Collectives,
        optimizer: RowOptimizer,
        *,
        seed: int,
        device: torch.device,
        init_std: float = 0.02,
        limits: TableConfig | None = None,
    ) -> None:
        super().__init__(dim, optimizer, seed=seed, device=device, init_std=init_std)
        self.limits = limits or TableConfig()
        self.waiting = WaitingKeys()
        self._collectives = collectives
        self._removals = 0

    def owners(self, tables: Int16Array, ids: Int64Array) -> Int64Array:
        """The rank that owns each key."""
        return owners_of(buckets_of(tables, ids), self._collectives.world)

    def lookup(
        self,
        tables: Int16Array,
        ids: Int64Array,
        *,
        create: bool = True,
        drawn_U: BoolArray | None = None,
        time_ms: int = 0,
    ) -> Lookup:
        """Collective. The rows of unique keys on any rank; their owners create missing ones.

        With `create=False`, a key without a row gets the values that training would give it, but no row.

        Args:
            tables: int16 (U,).
            ids: int64 (U,).
            create: whether missing rows are created and rows can be trained.
            drawn_U: keys that were only drawn: they get rows, but are neither seen nor counted. Default: none.
            time_ms: latest event time of the step on all ranks.
        """
        return self.lookup_with((), tables, ids, create=create, drawn_U=drawn_U, time_ms=time_ms)[0]

    def lookup_with(
        self,
        inputs: _Inputs,
        tables: Int16Array,
        ids: Int64Array,
        *,
        create: bool = True,
        drawn_U: BoolArray | None = None,
        time_ms: int = 0,
    ) -> tuple[Lookup, _Inputs]:
        """Collective. `lookup`, plus other host tensors on the rows' device, in the same copy.

        Args:
            inputs: what `to_device` takes.
            tables, ids, create, drawn_U, time_ms: as for `lookup`.
        """
        comm = self._collectives
        order_U, send_W = sort_by_owner(tables, ids, comm.world)
        tags_U = tables.astype(np.int64)
        if drawn_U is not None:
            tags_U[drawn_U] += _DRAWN
        send, receive, tags_R, ids_R = self._exchange_keys(tags_U, ids, order_U, send_W)
        tables_R = tags_R.astype(np.int16)
        rows_UD = torch.empty(1 + ids.shape[0], self.dim, device=self.device)
        rows_UD[0].zero_()
        own_order = torch.from_numpy(order_U if comm.world > 1 else order_U[:0])
        if create:
            asked, fresh = self._rows_to_train(tables_R, ids_R, tags_R < _DRAWN // 2, time_ms)
            parts = own_order, torch.from_numpy(asked.local_R), fresh, inputs
            order, index_R, fresh, inputs = to_device(parts, self.device)
            for rows in fresh:
                self.fill(rows)
            if comm.world == 1:
                torch.index_select(self.values_CD, 0, index_R, out=rows_UD[1:])
            else:
                self._send_back(self.values_CD.index_select(0, index_R), rows_UD, order, send, receive)
        else:
            local_R, found_RD, (order, inputs) = self._rows_to_read(tables_R, ids_R, (own_order, inputs))
            asked = Asked(local_R, np.zeros(local_R.shape[0], np.bool_), (tables_R[:0], ids_R[:0]))
            index_R = order[:0]
            self._send_back(found_RD, rows_UD, order, send, receive)
        rows_UD.requires_grad_(create)
        return Lookup(rows_UD, order, index_R, send, receive, asked, time_ms, self._removals), inputs

    def rows_of(self, tables: Int16Array, ids: Int64Array) -> Tensor:
        """Collective. `lookup(create=False)` where only the rows are wanted, as `FrozenRows.rows_of` gives them."""
        return self.lookup(tables, ids, create=False).rows_UD

    def apply_gradients(self, lookup: Lookup, learning_rate: float) -> None:
        """Collective. Send row gradients to their owners, sum them over ranks, and take one step per row.

        Raises:
            StaleLookupError: rows were removed since the lookup. Raised on every rank; nothing has changed.
        """
        if lookup.removals != self._removals:
            raise StaleLookupError(
                f"rows were removed {self._removals - lookup.removals} times between a lookup and its gradients; "
                "sweep and forget between steps"
            )
        gradient = lookup.rows_UD.grad
        if gradient is None:
            gradient = torch.zeros_like(lookup.rows_UD)
        asked, first = lookup.asked, 1
        if self._collectives.world > 1:
            sorted_UD = gradient[1:].index_select(0, lookup.order_U)
            gradient, first = self._collectives.all_to_all(sorted_UD, lookup.send, lookup.receive), 0
        if asked.local_R.shape[0] == 0:
            return
        if self._collectives.world == 1 and not self.limits.has_shared_rows:
            # Keys of a single rank without shared rows are already unique.
            rows_T, seen_T, index, at = asked.local_R, asked.seen_R, lookup.index_R, None
            gradient = gradient[first:]
        else:
            rows_T, at_T, later, seen_T = _once(asked.local_R, asked.seen_R)
            places = (rows_T, at_T + first, *(np.ascontiguousarray(part + first) for part in later.T))
            index, at, into, extra = to_device(tuple(map(torch.from_numpy, places)), self.device)
            if later.shape[0]:
                if self._collectives.world == 1:
                    gradient = gradient.clone()  # the caller's
                gradient.index_add_(0, into, gradient.index_select(0, extra))
        self.optimizer.update(self.values_CD, self.state, index, gradient, learning_rate, at)
        self.mark_changed(rows_T)
        self._see(rows_T[seen_T], lookup)

    def count(self, tables: Int16Array, ids: Int64Array, weights: Float64Array, time_ms: int) -> None:
        """Add to the frequency of distinct keys that this rank owns; creates rows, or counts keys as waiting."""
        if self.limits.has_shared_rows:
            own = self.index.find(tables, ids) >= 0
            self._wait(tables[~own], ids[~own], weights[~own], time_ms)
            tables, ids, weights = tables[own], ids[own], weights[own]
        local = self.add(tables, ids)
        self.frequency_C[local] += weights
        self.last_seen_ms_C[local] = np.maximum(self.last_seen_ms_C[local], time_ms)
        self.mark_changed(local)

    def frequencies(self, tables: Int16Array, ids: Int64Array) -> Float64Array:
        """Frequency of keys that this rank owns, float64 (K,), including keys that wait for a row."""
        local = self.index.find(tables, ids)
        known = np.where(local >= 0, self.frequency_C[local] if len(self) else 0.0, 0.0)
        return known + self.waiting.frequencies(tables, ids) if len(self.waiting) else known

    def forget(self, tables: Int16Array, ids: Int64Array) -> int:
        """Remove keys, including waiting ones; returns the number of this rank's rows removed. Between steps only.

        Every rank calls it with the same keys, or each with those that it owns; no messages are sent.
        """
        self._removals += 1
        self.waiting.remove(tables, ids)
        return self.remove(tables, ids)

    def sweep(self, now_ms: int) -> int:
        """Collective. Remove rows that are expired or above the limit; returns the number of this rank's rows removed.

        Between steps only. The choice depends on the rows of all ranks and `now_ms`, not on the number of ranks.
        """
        removed = 0
        if self.limits.has_shared_rows or self.limits.removes_rows:
            self._removals += 1
        if self.limits.expire_after_s > 0:
            removed += self._expire(now_ms - int(self.limits.expire_after_s * 1000), now_ms)
        if self.limits.max_rows > 0:
            surplus = self._surplus(self, self._endless_rows(), self.limits.max_rows, self.limits.evict)
            removed += self.remove(*self.keys_of(surplus))
        if self.limits.has_shared_rows:
            waiting = self.waiting.index
            surplus = self._surplus(self.waiting, waiting.rows(), self.limits.max_waiting, "recency")
            self.waiting.remove(*waiting.keys_of(surplus))
        return removed

    def _exchange_keys(
        self, tags_U: Int64Array, ids: Int64Array, order_U: Int64Array, send_W: Int64Array
    ) -> tuple[list[int], list[int], Int64Array, Int64Array]:
        comm = self._collectives
        if comm.world == 1:
            return [ids.shape[0]], [ids.shape[0]], tags_U, np.ascontiguousarray(ids)
        send = send_W.tolist()
        receive = comm.exchange(send_W.astype(np.float64))[:, comm.rank].astype(np.int64).tolist()
        keys_U2 = torch.from_numpy(np.stack([tags_U[order_U], ids[order_U]], axis=1))
        keys_R2 = comm.all_to_all(keys_U2, send, receive).numpy()
        return send, receive, np.ascontiguousarray(keys_R2[:, 0]), np.ascontiguousarray(keys_R2[:, 1])

    def _send_back(
        self, found_RD: Tensor, rows_UD: Tensor, order_U: Tensor, send: list[int], receive: list[int]
    ) -> None:
        if self._collectives.world == 1:
            rows_UD[1:].copy_(found_RD)
        else:
            rows_UD[1:].index_copy_(0, order_U, self._collectives.all_to_all(found_RD, receive, send))

    def _rows_to_train(
        self, tables_R: Int16Array, ids_R: Int64Array, seen_R: BoolArray, time_ms: int
    ) -> tuple[Asked, list[FreshRows]]:
        """Local rows of the keys, created if missing: own rows, or the shared row of a waiting key."""
        if not self.limits.has_shared_rows:
            local_R, fresh = self.make(tables_R, ids_R, time_ms)
            return Asked(local_R, seen_R, (tables_R[:0], ids_R[:0])), [fresh]
        local_R = self.index.find(tables_R, ids_R)
        waits_R = (local_R < 0) & np.isin(tables_R, ENDLESS)
        own_R = ~waits_R
        local_R[own_R], own = self.make(tables_R[own_R], ids_R[own_R], time_ms)
        local_R[waits_R], shared = self.make(*shared_keys(tables_R[waits_R], ids_R[waits_R]), time_ms)
        counted = np.flatnonzero(waits_R & seen_R & (tables_R != ITEM))
        each = counted[KeyIndex().get_or_add(tables_R[counted], ids_R[counted])[1]]
        return Asked(local_R, seen_R, (tables_R[each], ids_R[each])), [own, shared]

    def _rows_to_read(
        self, tables_R: Int16Array, ids_R: Int64Array, inputs: _Inputs
    ) -> tuple[Int64Array, Tensor, _Inputs]:
        """Values as training would see them: own row, shared row, or the initial value of either.

        Returns:
            Local rows, -1 if there is none; the values, float32 (R, D); `inputs` on the rows' device, in the same copy.
        """
        local_R = self.index.find(tables_R, ids_R)
        if self.limits.has_shared_rows:
            waits_R = (local_R < 0) & np.isin(tables_R, ENDLESS)
            if waits_R.any():
                tables_R, ids_R = tables_R.copy(), ids_R.copy()
                tables_R[waits_R], ids_R[waits_R] = shared_keys(tables_R[waits_R], ids_R[waits_R])
                local_R[waits_R] = self.index.find(tables_R[waits_R], ids_R[waits_R])
        missing, known = np.flatnonzero(local_R < 0), np.flatnonzero(local_R >= 0)
        fresh = self.initial(tables_R[missing], ids_R[missing])
        places = tuple(map(torch.from_numpy, (missing, known, local_R[known])))
        (missing_at, known_at, rows), fresh, inputs = to_device((places, fresh, inputs), self.device)
        if missing.shape[0] == 0:
            return local_R, self.values_CD.index_select(0, rows), inputs
        rows_RD = self.values_CD.new_empty(local_R.shape[0], self.dim)
        rows_RD.index_copy_(0, missing_at, fresh)
        rows_RD.index_copy_(0, known_at, self.values_CD.index_select(0, rows))
        return local_R, rows_RD, inputs

    def _see(self, rows_T: Int64Array, lookup: Lookup) -> None:
        """Record that a step's events have these rows and waiting keys."""
        self.frequency_C[rows_T] += self.keys_of(rows_T)[0] != ITEM
        self.last_seen_ms_C[rows_T] = np.maximum(self.last_seen_ms_C[rows_T], lookup.time_ms)
        tables, ids = lookup.asked.waiting
        if ids.shape[0]:
            self.count(tables, ids, np.ones(ids.shape[0]), lookup.time_ms)

    def _wait(self, tables: Int16Array, ids: Int64Array, weights: Float64Array, time_ms: int) -> None:
        """Count keys without a row of their own; those seen often enough get one."""
        seen = self.waiting.count(tables, ids, weights, time_ms)
        ready = seen >= self.limits.admit_after
        if not ready.any():
            return
        tables, ids = tables[ready], ids[ready]
        self.waiting.remove(tables, ids)
        local = self.add(tables, ids, time_ms)
        self.frequency_C[local] = seen[ready]
        if self.limits.admitted_start == "fresh":
            return
        shared = self.index.find(*shared_keys(tables, ids))
        trained = shared >= 0
        where = torch.from_numpy(shared[trained]).to(self.device)
        self.put(local[trained], self.values_CD.index_select(0, where))

    def _expire(self, before_ms: int, now_ms: int) -> int:
        rows = self._endless_rows()
        undated = rows[
            self.last_seen_ms_C[rows] == 0
        ]  # from a checkpoint without last-seen times: they start now
        self.last_seen_ms_C[undated] = now_ms
        self.mark_changed(undated)
        waiting = self.waiting.index.rows()
        late = waiting[self.waiting.last_seen_ms_C[waiting] < before_ms]
        self.waiting.remove(*self.waiting.index.keys_of(late))
        return self.remove(*self.keys_of(rows[self.last_seen_ms_C[rows] < before_ms]))

    def _endless_rows(self) -> Int64Array:
        rows = self.rows()
        return rows[np.isin(self.keys_of(rows)[0], ENDLESS)]

    def _surplus(
        self,
        store: LocalRows | WaitingKeys,
        rows: Int64Array,
        limit: int,
        by: Literal["recency", "frequency"],
    ) -> Int64Array:
        """Collective. The rows among `rows` to remove so that all ranks together hold `limit`."""
        held = int(self._collectives.exchange(np.array([rows.shape[0]], np.float64)).sum())
        if held <= limit:
            return rows[:0]
        keys, recency = store.index.keys_of(rows), store.last_seen_ms_C[rows]
        orders = as_orders(*keys, store.frequency_C[rows], recency, by)
        return rows[lowest(self._collectives, orders, held - limit)]


@njit(cache=True, nogil=True)
def _once(
    local_R: Int64Array, seen_R: BoolArray
) -> tuple[Int64Array, Int64Array, npt.NDArray[np.int64], BoolArray]:
    """The distinct local rows, in order of arrival.

    Returns:
        rows_T; at_T, the first request of each; pairs int64 (n, 2) of a row's first and each later request, in order;
        seen_T, whether any request was of a seen key.
    """
    count = local_R.shape[0]
    mask = np.int64(15)
    while mask < 2 * count:
        mask = 2 * mask + 1
    slots = np.full(mask + 1, -1, np.int32)
    rows_T, at_T = np.empty(count, np.int64), np.empty(count, np.int64)
    seen_T, pairs = np.zeros(count, np.bool_), np.empty((count, 2), np.int64)
    touched = repeated = 0
    for r in range(count):
        slot = np.int64(np.uint64(local_R[r]) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) & mask
        while slots[slot] >= 0 and rows_T[slots[slot]] != local_R[r]:
            slot = (slot + 1) & mask
        t = slots[slot]
        if t < 0:
            t = touched
            slots[slot] = t
            rows_T[t] = local_R[r]
            at_T[t] = r
            touched += 1
        else:
            pairs[repeated, 0] = at_T[t]
            pairs[repeated, 1] = r
            repeated += 1
        seen_T[t] |= seen_R[r]
    return rows_T[:touched], at_T[:touched], pairs[:repeated], seen_T[:touched]
