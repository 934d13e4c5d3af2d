"""The softmax candidates of a global step: in-batch items of all ranks and shared uniform negatives.

Every rank works out the same list from what all ranks know, so the list does not depend on their number; each
candidate is encoded by the rank that owns its row.

Shape letters: E events of this rank, M candidates of all ranks, N packed rows, T unique targets of all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from cluster.collectives import Collectives
from model.key_index import hash_keys

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

FAILED: Int64Array = np.array([[0, 0, -1, 0]])
"""In place of `target_rows`, of a rank that can make nothing of its events: no item has a negative number of them."""


@dataclass(frozen=True)
class GlobalTargets:
    """What the ranks trained in this step, all together."""

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
        """Place of each id in gathered order; -1 where it is no candidate."""
        order = np.argsort(self.ids_M, kind="stable")
        place = np.searchsorted(self.ids_M, ids, sorter=order)
        place = order[np.minimum(place, max(self.ids_M.shape[0] - 1, 0))] if self.ids_M.shape[0] else place
        found = self.ids_M[place] == ids if self.ids_M.shape[0] else np.zeros(ids.shape, bool)
        return np.where(found, place, -1)


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


def _ragged(column: pa.ListArray) -> tuple[npt.NDArray[np.int64], Int64Array]:
    offsets = column.offsets.to_numpy().astype(np.int64)
    if offsets.shape[0] == 0:
        offsets = np.zeros(1, np.int64)
    values = column.values.to_numpy()[offsets[0] : offsets[-1]]
    return values, offsets - offsets[0]


def target_rows(targets_E: Int64Array, weight_E: npt.NDArray[np.float32], latest_ms: int) -> Int64Array:
    """What a rank says of its events, int64 (T', 4): each item, its weight, its events, the latest time."""
    ids, inverse = np.unique(targets_E, return_inverse=True)
    weight = np.bincount(inverse, weight_E, minlength=ids.shape[0])
    # Weights travel as raw bits, so that one gather of integers carries everything.
    columns = [ids, weight.astype(np.float64).view(np.int64), np.bincount(inverse, minlength=ids.shape[0])]
    columns.append(np.full(ids.shape[0], latest_ms))
    return np.stack(columns, axis=1).astype(np.int64)


def gather_targets(comm: Collectives, mine: Int64Array) -> GlobalTargets | None:
    """Collective. The unique targets of the whole step with their summed weights; None if any rank gave `FAILED`.

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


def uniform_negatives(known_ids: Int64Array, count: int, *, seed: int, step: int) -> Int64Array:
    """Up to `count` distinct known items, each equally likely; a function of (seed, step) alone."""
    if known_ids.shape[0] == 0 or count == 0:
        return np.zeros(0, np.int64)
    key = np.int64((seed * 1_000_003 + step) & 0x7FF_FFFF_FFFF)  # 43 bits: the product stays an int64
    draws = hash_keys(np.full(count, 7, np.int16), key * 1_048_576 + np.arange(count, dtype=np.int64))
    return np.unique(known_ids[(draws % np.uint64(known_ids.shape[0])).astype(np.int64)])


def choose_candidates(targets_T: Int64Array, negatives: Int64Array, owners: Int64Array) -> Candidates:
    """Targets and negatives, each item once; `owners` belongs to `np.union1d(targets, negatives)`."""
    ids = np.union1d(targets_T, negatives)
    order = np.lexsort((ids, owners))
    return Candidates(ids[order], owners[order], np.isin(ids, targets_T)[order])


def negatives_to_drop(runs: Runs, candidates: Candidates, *, past_only: bool = False) -> BoolArray:
    """bool (E, M): candidates that the event's user is known to like, never the event's own target.

    Drops the user's seen items and every other target of the user's run: items that the same user
    takes a moment later are no negatives. With `past_only` those that come after the event stay negatives.
    """
    sorted_order = np.argsort(candidates.ids_M, kind="stable")
    drop_EM = np.zeros((runs.targets_E.shape[0], candidates.ids_M.shape[0]), np.bool_)
    _mark_known(
        drop_EM,
        candidates.ids_M[sorted_order],
        sorted_order,
        runs.items,
        runs.item_offsets_N1,
        runs.context_N,
        runs.seen,
        runs.seen_offsets_N1,
        past_only,
    )
    drop_EM[np.arange(drop_EM.shape[0]), candidates.positions(runs.targets_E)] = False
    return drop_EM


@njit(cache=True, nogil=True)
def _mark_known(
    drop_EM: BoolArray,
    sorted_ids: Int64Array,
    sorted_order: Int64Array,
    items: Int64Array,
    item_offsets: Int64Array,
    context_N: Int64Array,
    seen: Int64Array,
    seen_offsets: Int64Array,
    past_only: bool,
) -> None:
    known = np.zeros(drop_EM.shape[1], np.bool_)
    e = 0
    for n in range(item_offsets.shape[0] - 1):
        known[:] = False
        for k in range(seen_offsets[n], seen_offsets[n + 1]):
            _mark(known, sorted_ids, sorted_order, seen[k])
        start, end = item_offsets[n], item_offsets[n + 1]
        first_target = start + context_N[n]
        for k in range(start, first_target if past_only else end):
            _mark(known, sorted_ids, sorted_order, items[k])
        for k in range(first_target, end):
            drop_EM[e, :] = known
            e += 1
            if past_only:
                _mark(known, sorted_ids, sorted_order, items[k])


@njit(cache=True, nogil=True, inline="always")
def _mark(known: BoolArray, sorted_ids: Int64Array, sorted_order: Int64Array, item: int) -> None:
    place = np.searchsorted(sorted_ids, item)
    if place < sorted_ids.shape[0] and sorted_ids[place] == item:
        known[sorted_order[place]] = True
