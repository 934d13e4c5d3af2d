"""A row that cannot be used, in the form in which it is stored."""

from dataclasses import dataclass

from streaming.events.faults import code_of
from streaming.events.quoting import header_value
from streaming.events.unreadable import Unreadable

REPLAYED = b"replayed/"
"""Prefix of a marker's key: the dead letter whose key follows was replayed."""


_LONGEST_HEADER = 1024


# Characters of a topic's id (of 22) that are enough to distinguish topics of one name.
_ID_LENGTH = 8


# Overhead of a letter's Python objects and of the client's record of it.
_OBJECTS_BYTES = 2048


@dataclass(frozen=True)
class DeadLetter:
    """A row that cannot be used.

    Attributes:
        reason: what is wrong with it, with its code (`faults.Reason`).
        topic: the topic that it was read from.
        partition: its partition there.
        offset: offset of its message.
        row: its row inside the message; 0 if the message as a whole cannot be used.
        value: the original: the message's bytes, or the JSON of one row of an Arrow message.
        topic_id: Kafka's id of the topic; empty where the broker gives none.
    """

    reason: str
    topic: str
    partition: int
    offset: int
    row: int
    value: bytes
    topic_id: str = ""

    @property
    def code(self) -> str:
        """What kind of fault it is, one of `faults.LETTERS`."""
        return code_of(self.reason)

    @property
    def key(self) -> bytes:
        """Where it was read: the same after a crash, so a repeated letter overwrites itself; unique across topics."""
        places = [self.topic, self.partition, self.offset, self.row, self.topic_id[:_ID_LENGTH]]
        return "/".join(map(str, places)).rstrip("/").encode("utf-8", "backslashreplace")

    @property
    def length(self) -> int:
        """Length of the original; `value` may be only its beginning."""
        return self.value.length if isinstance(self.value, Unreadable) else len(self.value)

    @property
    def size(self) -> int:
        """Approximate memory that it takes until it is acknowledged."""
        return _OBJECTS_BYTES + len(self.value) + len(self.reason)

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        """Reason, its code, and position, as text."""
        names = ("reason", "code", "topic", "partition", "offset", "row")
        return [(name, header_value(str(getattr(self, name)), _LONGEST_HEADER)) for name in names]
