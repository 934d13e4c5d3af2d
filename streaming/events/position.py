"""A reader's position in a partition, and the interface of every source of events."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from streaming.events.validation import Decoded


class Position(NamedTuple):
    """The next row to read. It is a row of a message, so a cut inside a message neither loses nor repeats rows.

    Attributes:
        offset: offset of the message.
        row: row inside the message.
    """

    offset: int
    row: int


class RowPlace(NamedTuple):
    """The position of one row in the log."""

    partition: int
    offset: int
    row: int


class Gap(NamedTuple):
    """Messages of a partition that were no longer in the log when they were to be read.

    Attributes:
        start: offset of the first of them; some of its rows may have been read.
        until: offset at which reading continued.
        watermark_ms: latest event time of the partition before them; 0 if there was none.
        is_anew: whether the topic was deleted and recreated before them, so that later offsets are of another log.
    """

    start: int
    until: int
    watermark_ms: int
    is_anew: bool = False

    @property
    def messages(self) -> int:
        """Number of messages, judged by offsets; 0 if the topic was recreated."""
        return max(0, self.until - self.start)


class EventSource(Protocol):
    """Decoded events of some partitions, in order, with positions: from Kafka, or from files of events."""

    @property
    def partitions(self) -> list[int]:
        """The partitions that this source reads, ascending."""

    @property
    def finished(self) -> bool:
        """Whether the source is bounded and everything up to its ends has been taken."""

    @property
    def gaps(self) -> dict[int, list[Gap]]:
        """Gaps before the positions that were skipped since the source was opened, by partition and in order."""

    @property
    def topic_ids(self) -> dict[int, str]:
        """The id of the topic that each position refers to, by partition; partitions with unknown ids are left out."""

    def bound(self, end_offsets: Mapping[int, int]) -> None:
        """Make reading end at these offsets, exclusive, by partition."""

    def ready_rows(self) -> dict[int, int]:
        """Rows that `take` could return now, by partition."""

    def ended(self) -> frozenset[int]:
        """Partitions without rows beyond those that are ready; empty on an unbounded source."""

    def take(self, quota: Mapping[int, int]) -> Decoded:
        """At most quota[p] rows of partition p (unusable ones count), in partition, then position order."""

    def positions(self) -> dict[int, Position]:
        """The next row of each partition, after everything that was taken."""

    def lag(self) -> dict[int, int]:
        """Messages (or rows, in a file) between the position and the end, by partition."""

    def lag_events(self) -> float:
        """Approximate number of events up to the end: those that are ready plus an estimate of the others; or NaN."""

    def wait(self, timeout_s: float) -> bool:
        """Waits until a row is ready, no more can come, or time is up; returns whether a row is ready."""

    def wait_full(self, quota: int, timeout_s: float) -> bool:
        """Waits until every partition has `quota` rows ready or has ended, or time is up; returns which of the two."""

    def came_from(self, place: RowPlace) -> tuple[str, str]:
        """The topic or file that a row was read from, and its id, as given in dead letters."""

    def originals(self, places: Iterable[RowPlace]) -> dict[RowPlace, bytes]:
        """The originals at these positions, as stored in dead letters; those that cannot be read again are left out."""

    def close(self) -> None:
        """Stops reading; harmless if repeated."""
