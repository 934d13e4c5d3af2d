"""Rows that cannot be used, and the topic that they go to."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DeadLetter:
    """A row that cannot be used.

    Attributes:
        reason: what is wrong with it, for people.
        topic: the topic that it was read from.
        partition: its partition there.
        offset: offset of its message.
        row: its row inside the message; 0 if the message as a whole cannot be used.
        value: the original: the message's bytes, or the JSON of one row of an Arrow message.
    """

    reason: str
    topic: str
    partition: int
    offset: int
    row: int
    value: bytes
