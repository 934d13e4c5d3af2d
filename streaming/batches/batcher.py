"""Packs events into training batches: groups them by user, joins the history, and remembers the events.

A batch is a function of the log, the quotas and the settings, independent of timing, message sizes and other readers.

Shapes: N events, T targets among them, G runs (one user's targets of this batch), B rows (runs cut to at most W
targets), M explicit negatives, Q users.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from streaming.arrays import Float32Array, Int8Array, Int32Array, Int64Array
from streaming.batches.admission import Admission
from streaming.config import StreamConfig
from streaming.events.dead_letter import DeadLetter
from streaming.events.position import EventSource
from streaming.events.schema import (
    APPEND_MS,
    ITEM_ID,
    KEY_HASH,
    OFFSET,
    PARTITION,
    ROW,
    SET_ASIDE_SCHEMA,
    TIMESTAMP_MS,
    TRAINING_BATCH_SCHEMA,
    USER_ID,
    empty_batch,
)
from streaming.events.signals import DUPLICATE, IGNORED, NEGATIVE, POSITIVE, judge_signals
from streaming.events.times import FIRST_PLAUSIBLE_MS
from streaming.histories.event_log import EventLog, append, copy_last
from streaming.histories.history import UserStore
from streaming.histories.id_index import IdIndex
from streaming.histories.negatives import NO_NEGATIVES, NegativeEvents, join_negatives

_NOTHING = empty_batch(SET_ASIDE_SCHEMA)
_TARGET_COLUMNS = [USER_ID, ITEM_ID, TIMESTAMP_MS, PARTITION, OFFSET, ROW, APPEND_MS, KEY_HASH]


class UserAttributes(Protocol):
    """The part of the catalogue that a query needs."""

    def user_attributes(self, user_Q: Int64Array) -> Int64Array:
        """int64 (q, f): the attribute ids of each user, 0 where unknown."""


class KnownItems(UserAttributes, Protocol):
    """The part of the catalogue that the batcher needs."""

    def is_deleted(self, item_Q: Int64Array) -> npt.NDArray[np.bool_]:
        """bool (q,): whether each item was deleted; events of deleted items are not trained on."""


class DeadLetterSink(Protocol):
    """The part of the dead-letter writer that the batcher needs."""

    def send(self, letters: Iterable[DeadLetter]) -> None:
        """Hands the letters over; the sink's `flush` reports whether they arrived."""


class Batcher:
    """Cuts what a source has ready into training batches.

    Attributes:
        rows_read: rows taken from the source: the events in batches, those set aside, and `rows_dead`.
        rows_dead: rows that could not be used.
        dead: the unusable rows among those read for the last batch.
        implausible: usable rows among them whose time is before 1971, as if in another unit.
        set_aside: SET_ASIDE_SCHEMA, the usable rows read for the last batch that are not in it: explicit negatives,
            ignored events and duplicates.
    """

    def __init__(
        self,
        config: StreamConfig,
        source: EventSource,
        users: UserStore,
        catalogue: KnownItems,
        dead_letters: DeadLetterSink,
        admission: Admission | None = None,
    ) -> None:
        self._config = config
        self._source = source
        self._users = users
        self._catalogue = catalogue
        self._dead_letters = dead_letters
        self.rows_read = 0
        self.rows_dead = 0
        self.dead: list[DeadLetter] = []
        self.implausible = 0
        self.set_aside = _NOTHING
        self._admission = admission if admission is not None else Admission(config)

    @property
    def watermark_ms(self) -> dict[int, int]:
        """Latest event time of each partition, for those that had a usable row."""
        return self._admission.watermark_ms

    def ready_rows(self, quota: int) -> int:
        """Rows that `next_batch(quota)` would take now."""
        return sum(min(ready, quota) for ready in self._source.ready_rows().values())

    def wait_full(self, quota: int, timeout_s: float) -> bool:
        """Waits until `next_batch(quota)` is as large as it can become, or time is up.

        Cutting only when this is true makes the batches of a bounded source a function of the log alone.

        Returns:
            Whether every partition has `quota` rows ready or has come to its end.
        """
        return self._source.wait_full(quota, timeout_s)

    def next_batch(self, quota: int) -> pa.RecordBatch:
        """Takes at most `quota` rows of each partition and packs them.

        Returns:
            TRAINING_BATCH_SCHEMA; rows ordered by partition and first position, a user's pieces in order.
            No rows if nothing usable was ready.
        """
        decoded = self._source.take(dict.fromkeys(self._source.partitions, quota))
        self.rows_read += decoded.row_count
        self.rows_dead += len(decoded.dead)
        self.dead = decoded.dead
        if decoded.dead:
            self._dead_letters.send(decoded.dead)
        rows = decoded.rows
        self.implausible = int(np.count_nonzero(rows[TIMESTAMP_MS].to_numpy() < FIRST_PLAUSIBLE_MS))
        sign_N, weight_N = judge_signals(rows, self._config)
        sign_N[self._outside(rows[TIMESTAMP_MS].to_numpy())] = IGNORED
        sign_N[self._catalogue.is_deleted(rows[ITEM_ID].to_numpy())] = IGNORED
        sign_N[self._admission.admit(rows)] = DUPLICATE
        self.set_aside = _set_aside(rows, sign_N)
        return self._pack(rows, np.flatnonzero(sign_N == POSITIVE), weight_N, _negatives(rows, sign_N))

    def _outside(self, time_N: Int64Array) -> npt.NDArray[np.bool_]:
        """Which events a backfill by event time leaves out; files have event times only."""
        config = self._config
        outside_N = np.zeros(len(time_N), np.bool_)
        if config.time_axis == "event" or config.parquet:
            outside_N |= time_N < config.from_ms
            if config.until_ms:
                outside_N |= time_N >= config.until_ms
        return outside_N

    def _pack(
        self, rows: pa.RecordBatch, place_T: Int64Array, weight_N: Float32Array, negatives: NegativeEvents
    ) -> pa.RecordBatch:
        """A batch of the targets, which are rows `place_T`; new events are added to both stores."""
        everything = len(place_T) == rows.num_rows
        targets = rows if everything else rows.select(_TARGET_COLUMNS).take(pa.array(place_T))
        user_T, partition_T = targets[USER_ID].to_numpy(), targets[PARTITION].to_numpy()
        slot_T = self._users.slots_of(user_T, targets[KEY_HASH].to_numpy())
        history_length = self._config.history_length
        order_T, pieces = group(slot_T, history_length)
        self._users.reserve(len(pieces.slot_B), len(slot_T))
        item_T, time_T = (targets[name].to_numpy()[order_T] for name in (ITEM_ID, TIMESTAMP_MS))
        packed = join(self._users, pieces, item_T, time_T, history_length, self._config.seen_length)
        first_B = order_T[pieces.start_B[:-1]]
        user_B = user_T[first_B]
        unwanted, unwanted_offset_B = join_negatives(
            self._users.negatives, negatives, user_B, place_T[first_B]
        )
        attributes_BF = self._catalogue.user_attributes(user_B)
        stride_B = np.arange(len(user_B) + 1, dtype=np.int32) * np.int32(attributes_BF.shape[1])
        positions = [
            _lists(pieces.start_B, targets[name].to_numpy()[order_T]) for name in (OFFSET, ROW, APPEND_MS)
        ]
        return pa.RecordBatch.from_arrays(
            [
                pa.array(user_B),
                _lists(packed.offset_B, packed.items),
                _lists(packed.offset_B, packed.times),
                pa.array(packed.context_B),
                pa.array(packed.before_B),
                _lists(stride_B, attributes_BF.reshape(-1)),
                _lists(packed.seen_offset_B, packed.seen),
                pa.array(partition_T[first_B]),
                *positions,
                _lists(pieces.start_B, weight_N[place_T[order_T]]),
                _lists(unwanted_offset_B, unwanted),
            ],
            schema=TRAINING_BATCH_SCHEMA,
        )


class Pieces(NamedTuple):
    """Ranges of the grouped events that become rows.

    Attributes:
        slot_B: the user's slot.
        start_B: (B + 1,), piece b is grouped events [start_B[b], start_B[b + 1]).
        earlier_B: events of the same run in earlier pieces.
    """

    slot_B: Int32Array
    start_B: Int32Array
    earlier_B: Int32Array


class Packed(NamedTuple):
    """Columns of a batch; `offset_B` delimits `items` and `times`, `seen_offset_B` delimits `seen`."""

    offset_B: Int32Array
    items: Int64Array
    times: Int64Array
    context_B: Int32Array
    before_B: Int64Array
    seen_offset_B: Int32Array
    seen: Int64Array


def group(slot_N: Int32Array, longest: int) -> tuple[Int32Array, Pieces]:
    """Stable grouping by slot in order of first appearance, cut into pieces of at most `longest` events.

    Its time does not depend on how many slots there are.

    Args:
        slot_N: int32 (n,).
        longest: at least 1.
    Returns:
        The order (int32 (n,), indices into the events) and the pieces.
    """
    order_N, groups = np.empty(len(slot_N), np.int32), IdIndex()
    group_N = groups.add(slot_N.astype(np.int64))
    start_G = _group(group_N, len(groups), order_N)
    return order_N, Pieces(*_cut(start_G, groups.ids.astype(np.int32), longest))


def join(
    users: UserStore,
    pieces: Pieces,
    item_N: Int64Array,
    time_N: Int64Array,
    context_limit: int,
    seen_limit: int,
) -> Packed:
    """Joins each piece with the context before it and appends the piece to the store, in order.

    Args:
        users: must have room reserved for these events.
        pieces: of the grouped events.
        item_N: int64 (n,), grouped.
        time_N: int64 (n,), grouped, ms.
        context_limit: W, most events of history before a piece.
        seen_limit: most known items before a piece.
    """
    rows = len(pieces.slot_B)
    context_B = np.empty(rows, np.int32)
    offset_B, seen_offset_B = np.zeros(rows + 1, np.int32), np.zeros(rows + 1, np.int32)
    _measure(users.log.length_U, pieces, context_limit, seen_limit, context_B, offset_B, seen_offset_B)
    packed = Packed(
        offset_B,
        np.empty(offset_B[-1], np.int64),
        np.empty(offset_B[-1], np.int64),
        context_B,
        np.empty(rows, np.int64),
        seen_offset_B,
        np.empty(seen_offset_B[-1], np.int64),
    )
    _join(users.log, pieces, item_N, time_N, users.retained, packed)
    return packed


def _set_aside(rows: pa.RecordBatch, sign_N: Int8Array) -> pa.RecordBatch:
    place_S = np.flatnonzero(sign_N != POSITIVE)
    if not len(place_S):
        return _NOTHING
    columns = rows.select([USER_ID, PARTITION, OFFSET, ROW]).take(pa.array(place_S)).columns
    return pa.RecordBatch.from_arrays([*columns, pa.array(sign_N[place_S])], schema=SET_ASIDE_SCHEMA)


def _negatives(rows: pa.RecordBatch, sign_N: Int8Array) -> NegativeEvents:
    place_M = np.flatnonzero(sign_N == NEGATIVE)
    if not len(place_M):
        return NO_NEGATIVES
    user_M, key_M, item_M = (rows[name].to_numpy()[place_M] for name in (USER_ID, KEY_HASH, ITEM_ID))
    return NegativeEvents(user_M, key_M, item_M, place_M)


def _lists(offset_B: Int32Array, values: npt.NDArray[np.generic]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offset_B), pa.array(values))


@njit(cache=True, nogil=True)
def _group(group_N: Int32Array, groups: int, order_N: Int32Array) -> Int32Array:
    """Counting sort by group; where each group starts."""
    start_G = np.zeros(groups + 1, np.int32)
    for group in group_N:
        start_G[group + 1] += 1
    for g in range(groups):
        start_G[g + 1] += start_G[g]
    next_G = start_G[:groups].copy()
    for n in range(len(group_N)):
        order_N[next_G[group_N[n]]] = n
        next_G[group_N[n]] += 1
    return start_G


@njit(cache=True, nogil=True)
def _cut(start_G: Int32Array, slot_G: Int32Array, longest: int) -> tuple[Int32Array, Int32Array, Int32Array]:
    rows = 0
    for g in range(len(slot_G)):
        rows += (start_G[g + 1] - start_G[g] + longest - 1) // longest
    slot_B, start_B = np.empty(rows, np.int32), np.empty(rows + 1, np.int32)
    earlier_B = np.empty(rows, np.int32)
    b = 0
    for g in range(len(slot_G)):
        for start in range(start_G[g], start_G[g + 1], longest):
            slot_B[b], start_B[b], earlier_B[b] = slot_G[g], start, start - start_G[g]
            b += 1
    start_B[rows] = start_G[len(slot_G)]
    return slot_B, start_B, earlier_B


@njit(cache=True, nogil=True)
def _measure(
    length_U: Int32Array,
    pieces: Pieces,
    context_limit: int,
    seen_limit: int,
    context_B: Int32Array,
    offset_B: Int32Array,
    seen_offset_B: Int32Array,
) -> None:
    for b in range(len(pieces.slot_B)):
        known = length_U[pieces.slot_B[b]] + pieces.earlier_B[b]
        context_B[b] = min(context_limit, known)
        length = context_B[b] + pieces.start_B[b + 1] - pieces.start_B[b]
        offset_B[b + 1] = offset_B[b] + length
        seen_offset_B[b + 1] = seen_offset_B[b] + min(seen_limit, known)


@njit(cache=True, nogil=True)
def _join(
    log: EventLog, pieces: Pieces, item_N: Int64Array, time_N: Int64Array, retained: int, packed: Packed
) -> None:
    for b in range(len(pieces.slot_B)):
        slot, start, end = pieces.slot_B[b], pieces.start_B[b], pieces.start_B[b + 1]
        targets = packed.offset_B[b] + packed.context_B[b]
        copy_last(log, log.items_CK, slot, packed.context_B[b], packed.items, targets)
        copy_last(log, log.times_CK, slot, packed.context_B[b], packed.times, targets)
        for k in range(end - start):
            packed.items[targets + k] = item_N[start + k]
            packed.times[targets + k] = time_N[start + k]
        seen_end = packed.seen_offset_B[b + 1]
        copy_last(log, log.items_CK, slot, seen_end - packed.seen_offset_B[b], packed.seen, seen_end)
        packed.before_B[b] = log.count_U[slot]
        append(log, slot, item_N, time_N, start, end, retained)
