"""The last events of many users in flat arrays: a chain of chunks per user, taken from one pool.

Shapes: U user slots, C chunks, K = CHUNK events per chunk, N events, R runs.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from streaming.arrays import Int32Array, Int64Array

CHUNK = 32
_NONE = -1


class EventLog(NamedTuple):
    """The arrays; a named tuple, so that kernels take them as one argument.

    Attributes:
        head_U: oldest chunk of each user, -1 without events.
        tail_U: newest chunk.
        fill_U: events in the newest chunk; all others are full.
        length_U: events in the chain.
        count_U: total number of the user's events.
        items_CK: item ids.
        times_CK: event times, ms; (C, 0) in a log without times.
        next_C: the next newer chunk of the same user, -1 at the tail.
        prev_C: the next older one, -1 at the head.
        free_C: a stack of unused chunks.
        free: (1,), height of that stack.
    """

    head_U: Int32Array
    tail_U: Int32Array
    fill_U: Int32Array
    length_U: Int32Array
    count_U: Int64Array
    items_CK: Int64Array
    times_CK: Int64Array
    next_C: Int32Array
    prev_C: Int32Array
    free_C: Int32Array
    free: Int64Array


def new_log(users: int, chunks: int, *, with_times: bool = True) -> EventLog:
    """A log with room for this many users and chunks."""
    return EventLog(
        head_U=np.full(users, _NONE, np.int32),
        tail_U=np.full(users, _NONE, np.int32),
        fill_U=np.zeros(users, np.int32),
        length_U=np.zeros(users, np.int32),
        count_U=np.zeros(users, np.int64),
        items_CK=np.empty((chunks, CHUNK), np.int64),
        times_CK=np.empty((chunks, CHUNK if with_times else 0), np.int64),
        next_C=np.full(chunks, _NONE, np.int32),
        prev_C=np.full(chunks, _NONE, np.int32),
        free_C=np.arange(chunks - 1, -1, -1, dtype=np.int32),
        free=np.array([chunks], np.int64),
    )


def with_users(log: EventLog, users: int) -> EventLog:
    """The same log with room for at least `users` users (amortised doubling)."""
    have = len(log.head_U)
    if users <= have:
        return log
    more = max(users, 2 * have) - have
    return log._replace(
        head_U=np.concatenate([log.head_U, np.full(more, _NONE, np.int32)]),
        tail_U=np.concatenate([log.tail_U, np.full(more, _NONE, np.int32)]),
        fill_U=np.concatenate([log.fill_U, np.zeros(more, np.int32)]),
        length_U=np.concatenate([log.length_U, np.zeros(more, np.int32)]),
        count_U=np.concatenate([log.count_U, np.zeros(more, np.int64)]),
    )


def with_free_chunks(log: EventLog, wanted: int) -> EventLog:
    """The same log with at least `wanted` unused chunks (amortised doubling)."""
    free, have = int(log.free[0]), len(log.next_C)
    if wanted <= free:
        return log
    more = max(wanted - free, have)
    links = np.full(more, _NONE, np.int32)
    fresh = np.arange(have + more - 1, have - 1, -1, dtype=np.int32)
    return log._replace(
        items_CK=_longer(log.items_CK, more),
        times_CK=_longer(log.times_CK, more),
        next_C=np.concatenate([log.next_C, links]),
        prev_C=np.concatenate([log.prev_C, links]),
        free_C=np.concatenate([fresh, log.free_C[:free], np.empty(have - free, np.int32)]),
        free=np.array([free + more], np.int64),
    )


def _longer(values_CK: Int64Array, more: int) -> Int64Array:
    # Only chunks in use are written: memory that nothing has touched costs neither time nor pages.
    longer_CK = np.empty((len(values_CK) + more, values_CK.shape[1]), np.int64)
    longer_CK[: len(values_CK)] = values_CK
    return longer_CK


@njit(cache=True, nogil=True)
def copy_last(log: EventLog, values_CK: Int64Array, slot: int, count: int, out: Int64Array, end: int) -> None:
    """Writes the user's last `count` values of a pool to out[end - count:end], oldest first."""
    chunk, fill = log.tail_U[slot], log.fill_U[slot]
    while count > 0:
        taken = min(count, fill)
        end -= taken
        count -= taken
        # Slices indexed from 0 compile to a vector copy; with offsets in the loop this is 6 times slower.
        target, source = out[end : end + taken], values_CK[chunk][fill - taken : fill]
        for k in range(len(target)):
            target[k] = source[k]
        chunk, fill = log.prev_C[chunk], CHUNK


@njit(cache=True, nogil=True)
def append(
    log: EventLog, slot: int, item_N: Int64Array, time_N: Int64Array, start: int, end: int, retained: int
) -> None:
    """Appends events [start, end); afterwards whole chunks beyond the last `retained` events are freed.

    The log must have (end - start) // CHUNK + 1 free chunks. A log without times reads none of `time_N`.
    """
    has_times = log.times_CK.shape[1] > 0
    log.count_U[slot] += end - start
    while start < end:
        if log.tail_U[slot] == _NONE or log.fill_U[slot] == CHUNK:
            _add_chunk(log, slot)
        chunk, fill = log.tail_U[slot], log.fill_U[slot]
        taken = min(end - start, CHUNK - fill)
        for k in range(taken):
            log.items_CK[chunk, fill + k] = item_N[start + k]
            if has_times:
                log.times_CK[chunk, fill + k] = time_N[start + k]
        log.fill_U[slot] = fill + taken
        log.length_U[slot] += taken
        start += taken
    while log.length_U[slot] - CHUNK >= retained:
        _free_head(log, slot)


@njit(cache=True, nogil=True)
def clear(log: EventLog, slot: int) -> None:
    """Frees all chunks of the user and resets the number of events."""
    chunk = log.head_U[slot]
    while chunk != _NONE:
        # The data of a forgotten user must not stay in the pool.
        log.items_CK[chunk, :] = 0
        log.times_CK[chunk, :] = 0
        log.free_C[log.free[0]] = chunk
        log.free[0] += 1
        chunk = log.next_C[chunk]
    log.head_U[slot] = log.tail_U[slot] = _NONE
    log.fill_U[slot] = log.length_U[slot] = 0
    log.count_U[slot] = 0


@njit(cache=True, nogil=True)
def drop_items(log: EventLog, slot: int, item_D: Int64Array) -> int:
    """Removes the events of some items (ascending) from a user's chain; returns their number. The rest keeps its order.

    A user without remaining events is cleared; otherwise the total number of events does not change.
    """
    length = log.length_U[slot]
    chunk, left, found = log.head_U[slot], length, 0
    while left > 0:
        taken = min(left, CHUNK)
        for k in range(taken):
            found += _is_among(log.items_CK[chunk, k], item_D)
        left -= taken
        chunk = log.next_C[chunk]
    if found == 0:
        return 0
    if found == length:
        clear(log, slot)
        return found
    items, has_times = np.empty(length, np.int64), log.times_CK.shape[1] > 0
    times = np.empty(length if has_times else 0, np.int64)
    copy_last(log, log.items_CK, slot, length, items, length)
    if has_times:
        copy_last(log, log.times_CK, slot, length, times, length)
    count = log.count_U[slot]
    clear(log, slot)
    kept = 0
    for n in range(length):
        if not _is_among(items[n], item_D):
            items[kept] = items[n]
            if has_times:
                times[kept] = times[n]
            kept += 1
    # The chunks just freed are enough.
    append(log, slot, items, times, 0, kept, length)
    log.count_U[slot] = count
    return found


@njit(cache=True, nogil=True)
def _is_among(item: np.int64, item_D: Int64Array) -> bool:
    place = np.searchsorted(item_D, item)
    return bool(place < len(item_D) and item_D[place] == item)


@njit(cache=True, nogil=True)
def _add_chunk(log: EventLog, slot: int) -> None:
    log.free[0] -= 1
    chunk = log.free_C[log.free[0]]
    last = log.tail_U[slot]
    log.prev_C[chunk] = last
    log.next_C[chunk] = _NONE
    if last == _NONE:
        log.head_U[slot] = chunk
    else:
        log.next_C[last] = chunk
    log.tail_U[slot] = chunk
    log.fill_U[slot] = 0


@njit(cache=True, nogil=True)
def _free_head(log: EventLog, slot: int) -> None:
    """Frees the oldest chunk, which is full and not the only one with events to keep."""
    chunk = log.head_U[slot]
    newer = log.next_C[chunk]
    log.free_C[log.free[0]] = chunk
    log.free[0] += 1
    log.length_U[slot] -= CHUNK
    log.head_U[slot] = newer
    if newer == _NONE:
        log.tail_U[slot] = _NONE
        log.fill_U[slot] = 0
    else:
        log.prev_C[newer] = _NONE
