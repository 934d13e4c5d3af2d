"""The event ids of a partition's last events, to recognize repeated events.

Shapes: N queried events, W places of the window, T table slots (a power of two).
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit

from streaming.arrays import BoolArray, Int32Array, Int64Array
from streaming.events.hashing import hash_texts
from streaming.events.partitioner import key_hashes_of_texts

EVENT_HASH, EVENT_CHECK, KEY_HASH = "event_hash", "event_check", "key_hash"
_SCHEMA = pa.schema([(EVENT_HASH, pa.int64()), (EVENT_CHECK, pa.int32()), (KEY_HASH, pa.int32())])


class _Window(NamedTuple):
    """A ring of ids and a hash table of their places in it, for the kernels.

    Attributes:
        hash_W: xxh64 of each id.
        check_W: another hash of it (murmur2, 31 bits); with 95 bits together, ids with equal hashes count as equal.
        key_W: key hash of the event's user, by which ids follow users when a topic gains partitions.
        place_T: place in the ring, -1 where free.
        state: (2,), the oldest place and how many are taken.
    """

    hash_W: Int64Array
    check_W: Int32Array
    key_W: Int32Array
    place_T: Int32Array
    state: Int64Array


class EventIdWindow:
    """The last `length` event ids of one partition; allocates memory with the first id."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._window: _Window | None = None

    def __len__(self) -> int:
        return int(self._window.state[1]) if self._window is not None else 0

    def admit(self, ids: pa.Array, key_N: Int32Array) -> BoolArray:
        """Whether each event's id is among the last ones before it; new ids are added.

        Args:
            ids: Arrow strings (n,); an event without an id is never a duplicate and is not remembered.
            key_N: int32 (n,), key hashes of the users.
        Returns:
            bool (n,).
        """
        duplicate_N = np.zeros(len(ids), np.bool_)
        if ids.null_count == len(ids):
            return duplicate_N
        at_N = np.flatnonzero(ids.is_valid().to_numpy(zero_copy_only=False))
        texts = ids.drop_null()
        hashes = hash_texts(texts), key_hashes_of_texts(texts)
        duplicate_N[at_N] = self._admit(*hashes, np.ascontiguousarray(key_N[at_N]))
        return duplicate_N

    def to_table(self) -> pa.Table:
        """For the checkpoint: the ids' hashes, oldest first."""
        if self._window is None:
            return _SCHEMA.empty_table()
        first, count = self._window.state
        at = (first + np.arange(count)) % self._length
        columns = (self._window.hash_W[at], self._window.check_W[at], self._window.key_W[at])
        return pa.table([pa.array(column) for column in columns], schema=_SCHEMA)

    def load(self, table: pa.Table) -> None:
        """Adds what `to_table` returned; if they do not all fit, the last ones stay."""
        columns = (table[name].to_numpy() for name in _SCHEMA.names)
        if table.num_rows:
            self._admit(*(np.ascontiguousarray(column) for column in columns))

    def _admit(self, hash_N: Int64Array, check_N: Int32Array, key_N: Int32Array) -> BoolArray:
        if self._window is None:
            slots = 1 << (2 * self._length - 1).bit_length()
            self._window = _Window(
                np.empty(self._length, np.int64),
                np.empty(self._length, np.int32),
                np.empty(self._length, np.int32),
                np.full(slots, -1, np.int32),
                np.zeros(2, np.int64),
            )
        out_N = np.zeros(len(hash_N), np.bool_)
        _admit(self._window, hash_N, check_N, key_N, out_N)
        return out_N


@njit(cache=True, nogil=True)
def _admit(
    window: _Window, hash_N: Int64Array, check_N: Int32Array, key_N: Int32Array, out_N: BoolArray
) -> None:
    mask = np.int64(len(window.place_T) - 1)
    length = len(window.hash_W)
    for n in range(len(hash_N)):
        slot = hash_N[n] & mask
        while window.place_T[slot] >= 0:
            place = window.place_T[slot]
            if window.hash_W[place] == hash_N[n] and window.check_W[place] == check_N[n]:
                out_N[n] = True
                break
            slot = (slot + 1) & mask
        if out_N[n]:
            continue
        if window.state[1] == length:
            _forget_oldest(window, mask)
            # The moves may have freed a nearer slot.
            slot = hash_N[n] & mask
            while window.place_T[slot] >= 0:
                slot = (slot + 1) & mask
        place = (window.state[0] + window.state[1]) % length
        window.hash_W[place], window.check_W[place], window.key_W[place] = hash_N[n], check_N[n], key_N[n]
        window.place_T[slot] = place
        window.state[1] += 1


@njit(cache=True, nogil=True)
def _forget_oldest(window: _Window, mask: np.int64) -> None:
    """Removes the oldest id from the table by backward-shift deletion."""
    oldest = window.state[0]
    slot = window.hash_W[oldest] & mask
    while window.place_T[slot] != oldest:
        slot = (slot + 1) & mask
    behind = (slot + 1) & mask
    while window.place_T[behind] >= 0:
        home = window.hash_W[window.place_T[behind]] & mask
        if ((behind - home) & mask) >= ((behind - slot) & mask):
            window.place_T[slot] = window.place_T[behind]
            slot = behind
        behind = (behind + 1) & mask
    window.place_T[slot] = -1
    window.state[0] = (oldest + 1) % len(window.hash_W)
    window.state[1] -= 1
