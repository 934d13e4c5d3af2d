"""The softmax candidates of a global step: in-batch items of all ranks and shared uniform negatives.

Every rank computes the same list from data that all ranks have, so it does not depend on their number. Each candidate
is encoded by the rank that owns its row.

Shape letters: E events of this rank, M candidates of all ranks, N packed rows, T unique targets of all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from numba import njit
from torch import Tensor

from cluster.collectives import Collectives
from model.key_index import KeyIndex, hash_keys
from streaming.arrays import BoolArray, Int32Array, Int64Array

FAILED: Int64Array = np.array([[0, 0, -1, 0]])
"""Sent instead of `target_rows` by a rank whose events are unusable; no item has a negative number of events."""


@dataclass(frozen=True)
class GlobalTargets:
    """The targets of this step on all ranks."""

    ids_T: Int64Array
    """Unique target items, ascending."""
    weight_T: npt.NDArray[np.float64]
    """Summed weight of each item's events."""
    latest_ms: int
    events: int


@dataclass(frozen=True)
class Candidates:
    """The candidates in gathered order: by owning rank, then by id."""

    ids_M: Int64Array
    owner_M: Int64Array
    is_target_M: BoolArray

    def of_rank(self, rank: int) -> tuple[Int64Array, BoolArray]:
        """Ids and target flags of the candidates that a rank encodes."""
        mine = self.owner_M == rank
        return self.ids_M[mine], self.is_target_M[mine]

    def positions(self, ids: Int64Array) -> Int64Array:
        """Index of each id in gathered order; -1 if it is not a candidate."""
        return self._index.find(_one_table(ids), ids)

    @cached_property
    def _index(self) -> KeyIndex:
        index = KeyIndex()
        index.add(_one_table(self.ids_M), self.ids_M)
        return index


@dataclass(frozen=True)
class Runs:
    """NumPy views of a training batch (docs/reference/batch.md) that several steps of the pipeline need."""

    items: Int64Array
    item_offsets_N1: Int64Array
    context_N: Int64Array
    seen: Int64Array
    seen_offsets_N1: Int64Array
    user_N: Int64Array
    targets_E: Int64Array
    run_E: Int64Array

    @staticmethod
    def of(batch: pa.RecordBatch) -> Runs:
        """Views of the batch's columns; targets are the items after each row's context."""
        items, offsets = _ragged(batch.column("items"))
        seen, seen_offsets = _ragged(batch.column("seen"))
        context = batch.column("context_length").to_numpy().astype(np.int64)
        lengths = np.diff(offsets)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        is_target = within >= np.repeat(context, lengths)
        return Runs(
            items,
            offsets,
            context,
            seen,
            seen_offsets,
            batch.column("user_id").to_numpy(),
            items[is_target],
            np.repeat(np.arange(batch.num_rows), lengths)[is_target],
        )

    @property
    def target_places(self) -> Int64Array:
        """Index of each event's item in `items`, int64 (E,)."""
        lengths = np.diff(self.item_offsets_N1)
        within = np.arange(self.items.shape[0]) - np.repeat(self.item_offsets_N1[:-1], lengths)
        return np.flatnonzero(within >= np.repeat(self.context_N, lengths))


def _ragged(column: pa.ListArray) -> tuple[npt.NDArray[np.int64], Int64Array]:
    offsets = column.offsets.to_numpy().astype(np.int64)
    if offsets.shape[0] == 0:
        offsets = np.zeros(1, np.int64)
    values = column.values.to_numpy()[offsets[0] : offsets[-1]]
    return values, offsets - offsets[0]


def _one_table(ids: Int64Array) -> npt.NDArray[np.int16]:
    return np.zeros(ids.shape[0], np.int16)


def target_rows(targets_E: Int64Array, weight_E: npt.NDArray[np.float32], latest_ms: int) -> Int64Array:
    """A rank's targets, int64 (T', 4): each item, its weight, its number of events, and the latest time."""
    ids, inverse = np.unique(targets_E, return_inverse=True)
    weight = np.bincount(inverse, weight_E, minlength=ids.shape[0])
    # Weights are sent as raw bits, so that a single gather of integers is enough.
    columns = [ids, weight.astype(np.float64).view(np.int64), np.bincount(inverse, minlength=ids.shape[0])]
    columns.append(np.full(ids.shape[0], latest_ms))
    return np.stack(columns, axis=1).astype(np.int64)


def gather_targets(comm: Collectives, mine: Int64Array) -> GlobalTargets | None:
    """Collective. The unique targets of the whole step with their summed weights; None if any rank sent `FAILED`.

    Args:
        comm: the ranks.
        mine: `target_rows` of this rank's events, or `FAILED`.
    """
    gathered = comm.gather_ints(mine, "targets")
    if (gathered[:, 2] < 0).any():
        return None
    all_ids, where = np.unique(gathered[:, 0], return_inverse=True)
    weights = np.ascontiguousarray(gathered[:, 1]).view(np.float64)
    total = np.bincount(where, weights, minlength=all_ids.shape[0]).astype(np.float64)
    return GlobalTargets(all_ids, total, int(gathered[:, 3].max(initial=0)), int(gathered[:, 2].sum()))


def uniform_negatives(
    known: int, known_at: Callable[[Int64Array], Int64Array], count: int, *, seed: int, step: int
) -> Int64Array:
    """Up to `count` distinct known items, uniformly drawn; a function of (seed, step) and the known items alone.

    Args:
        known: number of known items.
        known_at: returns the ids at places 0 to `known` − 1.
        count: draws, with replacement.
        seed, step: key of the draws.
    """
    if known == 0 or count == 0:
        return np.zeros(0, np.int64)
    key = np.int64((seed * 1_000_003 + step) & 0x7FF_FFFF_FFFF)  # 43 bits: the product stays an int64
    draws = hash_keys(np.full(count, 7, np.int16), key * 1_048_576 + np.arange(count, dtype=np.int64))
    return np.unique(known_at((draws % np.uint64(known)).astype(np.int64)))


def choose_candidates(targets_T: Int64Array, negatives: Int64Array, owners: Int64Array) -> Candidates:
    """The distinct targets and negatives; `owners` are those of `np.union1d(targets, negatives)`."""
    ids = np.union1d(targets_T, negatives)
    order = np.lexsort((ids, owners))
    return Candidates(ids[order], owners[order], np.isin(ids, targets_T)[order])


@dataclass(frozen=True)
class KnownItems:
    """The candidates that a batch's users are known to like, as pairs, which are far fewer than the (E, M) mask."""

    run_P: Tensor
    """int64, a row of the batch."""
    place_P: Tensor
    """int64, a candidate; pairs are distinct."""
    from_P: Tensor | None
    """int32, the first event of the run that knows of it; None if all do."""
    run_E: Tensor
    """int64, the row of each event."""
    within_E: Tensor
    """int32, which event of its run each one is."""
    runs: int

    @staticmethod
    def of(runs: Runs, candidates: Candidates, *, past_only: bool = False) -> KnownItems:
        """The items that each user has seen and every target of the user's run.

        An item that the user takes later in the run is not a negative; with `past_only` it is one until then.
        """
        seen, items = candidates.positions(runs.seen), candidates.positions(runs.items)
        run_P, place_P, from_P, within_E = (
            torch.from_numpy(array)
            for array in _known_pairs(
                *(seen, runs.seen_offsets_N1, items, runs.item_offsets_N1, runs.context_N),
                candidates.ids_M.shape[0],
            )
        )
        run_E = torch.from_numpy(runs.run_E)
        return KnownItems(
            run_P, place_P, from_P if past_only else None, run_E, within_E, runs.context_N.shape[0]
        )

    def to_drop(self, target_E: Tensor, candidates: int) -> Tensor:
        """bool (E, M), where these tensors are: the negatives to leave out, never the event's own target.

        Args:
            target_E: int64, the index of each event's own target.
            candidates: M.
        """
        shape, device = (self.runs, candidates), self.run_P.device
        if self.from_P is None:
            known_NM = torch.zeros(shape, dtype=torch.bool, device=device)
            known_NM[self.run_P, self.place_P] = True
            drop_EM = known_NM.index_select(0, self.run_E)
        else:
            from_NM = torch.full(shape, torch.iinfo(torch.int32).max, dtype=torch.int32, device=device)
            from_NM[self.run_P, self.place_P] = self.from_P
            drop_EM = from_NM.index_select(0, self.run_E) <= self.within_E.unsqueeze(1)
        return drop_EM.scatter_(1, target_E.unsqueeze(1), False)


@njit(cache=True, nogil=True)
def _known_pairs(
    seen: Int64Array,
    seen_offsets: Int64Array,
    items: Int64Array,
    item_offsets: Int64Array,
    context_N: Int64Array,
    candidates: int,
) -> tuple[Int64Array, Int64Array, Int32Array, Int32Array]:
    """`run_P`, `place_P`, `from_P`, `within_E`; `seen` and `items` are indices, -1 for items not among them."""
    room = seen.shape[0] + items.shape[0]
    run_P, place_P, from_P = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int32)
    within_E = np.empty(items.shape[0], np.int32)
    last_run_M = np.full(candidates, -1, np.int64)
    count = events = 0
    for n in range(context_N.shape[0]):
        for k in range(seen_offsets[n], seen_offsets[n + 1]):
            if seen[k] >= 0 and last_run_M[seen[k]] != n:
                last_run_M[seen[k]] = n
                run_P[count], place_P[count], from_P[count] = n, seen[k], 0
                count += 1
        first_target = item_offsets[n] + context_N[n]
        for k in range(item_offsets[n], item_offsets[n + 1]):
            if items[k] >= 0 and last_run_M[items[k]] != n:
                last_run_M[items[k]] = n
                run_P[count], place_P[count] = n, items[k]
                # From the next event on, because an event does not know its own item beforehand.
                from_P[count] = max(0, k - first_target + 1)
                count += 1
            if k >= first_target:
                within_E[events] = k - first_target
                events += 1
    return run_P[:count], place_P[:count], from_P[:count], within_E[:events]
