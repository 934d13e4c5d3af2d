"""Decoded rows of one partition that wait to be taken, and the position after taking them.

Shapes: N rows of a piece, usable and unusable together, in (offset, row) order.
"""

from collections import deque

import numpy as np
import numpy.typing as npt

from streaming.arrays import Int32Array, Int64Array
from streaming.events.position import Position
from streaming.events.schema import OFFSET, ROW
from streaming.events.validation import Decoded


class RowQueue:
    """A queue of decoded ranges of one partition; every range holds whole messages.

    Attributes:
        position: the next row to take.
        ready: rows in the queue.
        fetched: offset up to which messages have been put, including gaps.
        size: bytes, decoded, of the messages whose rows are not all taken, and of their dead letters.
        rows_put: rows of all ranges so far.
        messages_put: messages of all ranges so far.
    """

    def __init__(self, start: Position) -> None:
        self.position = start
        self.ready = 0
        self.fetched = start.offset
        self.size = 0
        self.rows_put = self.messages_put = 0
        self._pieces: deque[_Piece] = deque()

    def put(self, decoded: Decoded, fetched: int, size: int = 0) -> None:
        """Adds the range that follows the last one, with its size in bytes; rows before the position are dropped."""
        piece = _Piece(decoded, size)
        self.rows_put += piece.remaining
        self.messages_put += piece.messages
        piece.skip(piece.rows_before(self.position) if not self._pieces else 0)
        self.fetched = max(self.fetched, fetched)
        if piece.remaining:
            self._pieces.append(piece)
            self.ready += piece.remaining
            self.size += size

    def take(self, limit: int) -> list[Decoded]:
        """Up to `limit` rows, as ranges in order."""
        taken: list[Decoded] = []
        while limit > 0 and self._pieces:
            piece = self._pieces[0]
            count = min(limit, piece.remaining)
            stretch, self.position = piece.take(count)
            taken.append(stretch)
            limit -= count
            self.ready -= count
            if not piece.remaining:
                self.size -= piece.size
                self._pieces.popleft()
        return taken

    def skip_gap(self, end: int) -> None:
        """Moves the position to `end` if no rows are left before it."""
        if not self.ready and self.fetched >= end and self.position.offset < end:
            self.position = Position(end, 0)

    @property
    def decoded_to(self) -> int:
        """The offset after everything that has been put."""
        return max(self.position.offset, self.fetched)

    def next_offset(self) -> int:
        """Offset of the next message to take from; after a gap if the queue is empty."""
        return self.position.offset if self.ready else self.decoded_to


class _Piece:
    """A decoded range that is taken in pieces."""

    def __init__(self, decoded: Decoded, size: int) -> None:
        self._decoded = decoded
        self.size = size
        self._offset_N, self._row_N, self._is_dead_N = _places(decoded)
        self._taken, self._taken_dead = 0, 0

    @property
    def remaining(self) -> int:
        return len(self._offset_N) - self._taken

    @property
    def messages(self) -> int:
        """Number of messages of its rows."""
        return int(np.count_nonzero(np.diff(self._offset_N))) + bool(len(self._offset_N))

    def rows_before(self, position: Position) -> int:
        """Number of rows before a position."""
        at_N = self._offset_N
        before_N = (at_N < position.offset) | ((at_N == position.offset) & (self._row_N < position.row))
        return int(before_N.sum())

    def skip(self, count: int) -> None:
        """Skips the next rows."""
        if count:
            self.take(count)

    def take(self, count: int) -> tuple[Decoded, Position]:
        """The next rows (at least one), and the position after them."""
        start, end = self._taken, self._taken + count
        dead = int(self._is_dead_N[start:end].sum()) if self._is_dead_N is not None else 0
        first_usable = start - self._taken_dead
        rows = self._decoded.rows.slice(first_usable, count - dead)
        letters = self._decoded.dead[self._taken_dead : self._taken_dead + dead]
        self._taken, self._taken_dead = end, self._taken_dead + dead
        return Decoded(rows, letters), self._position_after(end - 1)

    def _position_after(self, last: int) -> Position:
        offset = int(self._offset_N[last])
        within = last + 1 < len(self._offset_N) and int(self._offset_N[last + 1]) == offset
        return Position(offset, int(self._row_N[last]) + 1) if within else Position(offset + 1, 0)


def _places(decoded: Decoded) -> tuple[Int64Array, Int32Array, npt.NDArray[np.bool_] | None]:
    """Offset and row of every row, in order, and which are unusable (None if all are usable)."""
    offset_N, row_N = decoded.rows[OFFSET].to_numpy(), decoded.rows[ROW].to_numpy()
    if not decoded.dead:
        return offset_N, row_N, None
    offset_N = np.concatenate([offset_N, [letter.offset for letter in decoded.dead]]).astype(np.int64)
    row_N = np.concatenate([row_N, [letter.row for letter in decoded.dead]]).astype(np.int32)
    order_N = np.lexsort((row_N, offset_N))
    return offset_N[order_N], row_N[order_N], order_N >= decoded.rows.num_rows
