"""Turns one partition's messages into rows: holds fetched messages, decoded rows, and the end.

The reading thread calls `receive` and `decode`; the queue is only used under the source's lock.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from streaming.codecs.arrow_limits import Extent
from streaming.codecs.codec import decode_messages, extent_of
from streaming.events.position import Gap, Position
from streaming.events.validation import Decoded, Message, Place
from streaming.sources.row_queue import RowQueue

# Overhead of a tuple of two objects.
_HEADER_BYTES = 160


@dataclass(frozen=True)
class Stretch:
    """Decoded rows for the queue, the offset after them, their messages, and the bytes that they hold."""

    decoded: Decoded
    fetched: int
    messages: int
    size: int


class PartitionReader:
    """The state of one partition in a source.

    Attributes:
        queue: decoded rows that wait to be taken.
        highwater: end of the log as of the last fetch.
        held: whether the next message was sent for a larger number of partitions, so that reading stops before it.
        waiting_bytes: bytes of the messages that are fetched but not decoded yet.
    """

    def __init__(self, place: Place, queue: RowQueue, end: int | None, watermark_ms: int) -> None:
        self.queue = queue
        self.highwater = 0
        self.held = False
        self._place = place
        self._end = end
        self._watermark_ms = watermark_ms
        self._waiting: deque[tuple[Message, Extent, int]] = deque()
        self.waiting_bytes = 0
        self._reached = queue.fetched
        self._gaps: list[Gap] = []
        self._anew: tuple[int, str] | None = None
        self.skip_gap()

    @property
    def waiting(self) -> int:
        """Messages that are fetched but not decoded yet."""
        return len(self._waiting)

    @property
    def ended(self) -> bool:
        """Whether no rows will follow those in the queue."""
        if self._anew is not None:
            return False
        return self.held or (self._end is not None and self.queue.fetched >= self._end)

    @property
    def is_bounded(self) -> bool:
        """Whether it has an end."""
        return self._end is not None

    @property
    def topic_id(self) -> str:
        """The id of the topic that the position refers to; empty if the broker has no ids."""
        return self._place.topic_id

    def bound(self, end: int) -> None:
        """Make it end here, or where decoding already is."""
        self._end = end if self._anew is not None else max(end, self.queue.fetched)
        self.skip_gap()

    def skip_gap(self) -> None:
        """Moves the position to the end if nothing is left before it."""
        if self._end is not None and self._anew is None:
            self.queue.skip_gap(self._end)

    def jump(self, start: int, until: int) -> None:
        """Continue here, because the messages before are no longer in the log. No message may wait for decoding."""
        self._gaps.append(Gap(start, until, self._watermark_ms))
        self._reached = max(self._reached, until)
        self.queue.fetched = max(self.queue.fetched, until)
        self.queue.skip_gap(self.queue.fetched)

    def begin_anew(self, begin: int, topic_id: str) -> None:
        """Continue here in the recreated topic, once all rows of the earlier one are taken.

        No message may wait for decoding; messages received from now on are of the new topic.
        """
        self._anew = (begin, topic_id)
        self._reached = begin
        self.held = False

    def turn_over(self) -> bool:
        """Moves the position into the new topic if no rows of the earlier one are left; returns whether it did.

        Must be called between two takes, so that the rows of one take are of one topic.
        """
        if self._anew is None or self.queue.ready:
            return False
        (begin, topic_id), self._anew = self._anew, None
        self.queue.position, self.queue.fetched = Position(begin, 0), begin
        # Whether an event is late does not depend on the earlier log.
        self._watermark_ms = 0
        self._place = replace(self._place, topic_id=topic_id)
        self._gaps.append(Gap(0, begin, 0, is_anew=True))
        return True

    def passed_gaps(self) -> list[Gap]:
        """The gaps before the position; a gap is passed once all rows before it are taken."""
        anew = max((n for n, gap in enumerate(self._gaps) if gap.is_anew), default=-1)
        offset = self.queue.position.offset
        return [gap for n, gap in enumerate(self._gaps) if n <= anew or gap.until <= offset]

    def receive(self, messages: Sequence[Message], reached: int) -> None:
        """Takes fetched messages and the offset that reading has reached, including gaps."""
        self._reached = max(self._reached, reached)
        if self.held:
            return
        place = self._place
        sizes = [held_bytes(message) for message in messages]
        extents = [extent_of(message, place) for message in messages]
        self._waiting.extend(zip(messages, extents, sizes, strict=True))
        self.waiting_bytes += sum(sizes)

    def decode(self, rows: float, size: float, needed: int, grown: Callable[[], int]) -> Stretch:
        """Decodes as many of the waiting messages as fit, at least one if the queue needs rows.

        Args:
            rows: maximum number of rows in the queue.
            size: maximum decoded bytes in the queue.
            needed: with fewer rows than this, the next message is decoded whatever its size.
            grown: returns the current number of the topic's partitions.
        """
        chosen: list[Message] = []
        checked = True
        if self._anew is not None:
            return Stretch(Decoded(), 0, 0, 0)  # the taking thread may call `turn_over` at any time
        self._drop_beyond_end()
        ready, decoded = self.queue.ready, self.queue.size
        while self._waiting:
            message, (more_rows, more_bytes, is_refused), held = self._waiting[0]
            if ready >= needed and (ready + more_rows > rows or decoded + more_bytes > size):
                break
            chosen.append(message)
            checked &= not is_refused
            self._waiting.popleft()
            self.waiting_bytes -= held
            ready, decoded = ready + more_rows, decoded + more_bytes
        if not chosen:
            nothing_left = not self._waiting and not self.held
            return Stretch(Decoded(), self._reached if nothing_left else self.queue.fetched, 0, 0)
        return self._decode(chosen, decoded - self.queue.size, grown, checked)

    def _drop_beyond_end(self) -> None:
        while self._end is not None and self._waiting and self._waiting[-1][0].offset >= self._end:
            self.waiting_bytes -= self._waiting.pop()[2]

    def _decode(self, messages: list[Message], size: int, grown: Callable[[], int], checked: bool) -> Stretch:
        place = replace(self._place, extents_known=checked)
        decoded = decode_messages(messages, place, self._watermark_ms)
        if decoded.strays:
            messages = self._before_growth(messages, grown)
            if self.held:
                decoded = decode_messages(messages, self._place, self._watermark_ms)
        self._watermark_ms = max(self._watermark_ms, decoded.latest_ms)
        reached = messages[-1].offset + 1 if messages else self.queue.fetched
        if not self._waiting and not self.held:
            reached = self._reached
        return Stretch(decoded, reached, len(messages), size + sum(letter.size for letter in decoded.dead))

    def _before_growth(self, messages: list[Message], grown: Callable[[], int]) -> list[Message]:
        """The messages before the first one from a producer that uses more partitions; all if there is none."""
        partitions = grown()
        if partitions <= self._place.partitions:
            return messages
        wider = replace(self._place, partitions=partitions)
        for n, message in enumerate(messages):
            alone = [message]
            if decode_messages(alone, self._place).strays and not decode_messages(alone, wider).strays:
                self.held = True
                self._waiting.clear()
                self.waiting_bytes = 0
                return messages[:n]
        return messages


def held_bytes(message: Message) -> int:
    """Approximate memory that a message takes until it is decoded."""
    size = len(message.value or b"")
    return size + _HEADER_BYTES * len(message.headers) if message.headers else size
