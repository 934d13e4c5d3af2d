"""Where a reader stands in a partition, and what every source of events offers."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from streaming.events.validation import Decoded


class Position(NamedTuple):
    """The next row to read: a row of a message, so that a cut inside a message loses and repeats nothing.

    Attributes:
        offset: offset of the message.
        row: row inside the message.
    """

    offset: int
    row: int


class RowPlace(NamedTuple):
    """Where one row stands in the log."""

    partition: int
    offset: int
    row: int


class Gap(NamedTuple):
    """Messages of a partition that the log did not hold any more when they were to be read.

    Attributes:
        start: offset of the first of them; some of its rows may have been read.
        until: where reading went on.
        watermark_ms: latest event time of the partition before them; 0 if there was none.
        is_anew: the topic was deleted and recreated before them: offsets from here on are of another log.
    """

    start: int
    until: int
    watermark_ms: int
    is_anew: bool = False

    @property
    def messages(self) -> int:
        """How many there were, as far as offsets tell; none in a topic that was recreated."""
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
        """What was passed over before the positions, by partition and in order, since it was opened."""

    @property
    def topic_ids(self) -> dict[int, str]:
        """The topic that each position is of, by partition; without those where nobody knows."""

    def bound(self, end_offsets: Mapping[int, int]) -> None:
        """Ends at these offsets, exclusive, by partition."""

    def ready_rows(self) -> dict[int, int]:
        """Rows that `take` could return now, by partition."""

    def ended(self) -> frozenset[int]:
        """Partitions of which nothing remains beyond what is ready; empty on an unbounded source."""

    def take(self, quota: Mapping[int, int]) -> Decoded:
        """At most quota[p] rows of partition p (unusable ones count), in partition, then position order."""

    def positions(self) -> dict[int, Position]:
        """The next row of each partition, after everything that was taken."""

    def lag(self) -> dict[int, int]:
        """Messages (or rows, in a file) between the position and the end, by partition."""

    def lag_events(self) -> float:
        """About how many events are left up to the end: those that are ready, and an estimate of the others; or NaN."""

    def wait(self, timeout_s: float) -> bool:
        """Waits until any row is ready, nothing more will come, or time is up; whether any row is ready."""

    def wait_full(self, quota: int, timeout_s: float) -> bool:
        """Waits until every partition has `quota` rows ready or its end, or time is up; whether they have."""

    def came_from(self, place: RowPlace) -> tuple[str, str]:
        """The topic, or the file, that a row was read from, and its id, as a dead letter names them."""

    def originals(self, places: Iterable[RowPlace]) -> dict[RowPlace, bytes]:
        """What stands at these places as a dead letter carries it; without those that cannot be read again."""

    def close(self) -> None:
        """Stops reading; harmless if repeated."""
