"""Joins each row of a training batch with its user's earlier explicit negatives.

Shapes: B rows of the batch, M explicit negatives among the batch's events.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from streaming.arrays import Int32Array, Int64Array
from streaming.histories.event_log import EventLog, copy_last
from streaming.histories.event_store import EventStore

_NO_TIMES = np.empty(0, np.int64)


class NegativeEvents(NamedTuple):
    """Explicit negatives of a batch, in the order of the log.

    Attributes:
        user_M: int64.
        key_M: int32, the user's key hash.
        item_M: int64.
        place_M: int64, ascending: index of each among the batch's events.
    """

    user_M: Int64Array
    key_M: Int32Array
    item_M: Int64Array
    place_M: Int64Array


NO_NEGATIVES = NegativeEvents(
    np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int64)
)


def join_negatives(
    store: EventStore, events: NegativeEvents, user_B: Int64Array, place_B: Int64Array
) -> tuple[Int64Array, Int32Array]:
    """The last `store.retained` negatives before each row, oldest first; then the batch's are added to the store.

    Args:
        store: of explicit negatives; gets those of `events`.
        events: the batch's own.
        user_B: int64 (b,), the user of each row.
        place_B: int64 (b,), index of the row's first target among the batch's events: only negatives before it count.
    Returns:
        items int64, offsets int32 (b + 1,) of each row's range.
    """
    if not len(store) and not len(events.user_M):
        return np.empty(0, np.int64), np.zeros(len(user_B) + 1, np.int32)
    slot_M = store.slots_of(events.user_M, events.key_M)
    order_M = np.argsort(slot_M, kind="stable")
    slot_M, item_M, place_M = slot_M[order_M], events.item_M[order_M], events.place_M[order_M]
    slot_B = store.find(user_B)
    start_B, end_B = _stretches(slot_M, place_M, slot_B, place_B)
    known_B = np.where(slot_B >= 0, store.log.length_U[slot_B], 0) + end_B - start_B
    offset_B = np.zeros(len(user_B) + 1, np.int32)
    offset_B[1:] = np.cumsum(np.minimum(known_B, store.retained))
    items = np.empty(offset_B[-1], np.int64)
    _copy(store.log, slot_B, start_B, end_B, item_M, offset_B, items)
    _append(store, events, order_M, slot_M, item_M)
    return items, offset_B


def _stretches(
    slot_M: Int32Array, place_M: Int64Array, slot_B: Int32Array, place_B: Int64Array
) -> tuple[Int64Array, Int64Array]:
    """The range of each row's negatives (of its user, before its first target) among the sorted ones."""
    width = 1 + max(place_M.max(initial=0), place_B.max(initial=0))
    key_M, first_B = slot_M * width + place_M, slot_B * width
    return np.searchsorted(key_M, first_B), np.searchsorted(key_M, first_B + place_B)


def _append(
    store: EventStore, events: NegativeEvents, order_M: Int64Array, slot_M: Int32Array, item_M: Int64Array
) -> None:
    first_R = np.flatnonzero(np.diff(slot_M, prepend=-1))
    event_R = order_M[first_R]
    start_R = np.append(first_R, len(slot_M))
    store.append(events.user_M[event_R], events.key_M[event_R], start_R, item_M, _NO_TIMES)


@njit(cache=True, nogil=True)
def _copy(
    log: EventLog,
    slot_B: Int32Array,
    start_B: Int64Array,
    end_B: Int64Array,
    item_M: Int64Array,
    offset_B: Int32Array,
    items: Int64Array,
) -> None:
    """Fills each row's range from its end: first with the batch's negatives, then with the store's."""
    for b in range(len(slot_B)):
        at, room = offset_B[b + 1], offset_B[b + 1] - offset_B[b]
        fresh = min(room, end_B[b] - start_B[b])
        for k in range(fresh):
            items[at - fresh + k] = item_M[end_B[b] - fresh + k]
        copy_last(log, log.items_CK, slot_B[b], room - fresh, items, at - fresh)
