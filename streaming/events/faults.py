"""One vocabulary for what is wrong with data, used by dead letters, counters, `freshet check`, and lists."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        meaning: in a few words, for people.
        remedy: the setting to change, or what the producer must do.
        is_used: whether what has it is used all the same, and only counted.
    """

    meaning: str
    remedy: str
    is_used: bool = False


FAULTS: dict[str, Fault] = {
    "quarantined": Fault("training on it failed", "see train.max_poison_batches"),
    "too_large": Fault("larger than a limit", "raise the limit that the reason names"),
    "schema": Fault(
        "does not fit its schema", "stream.message_format, stream.schema_registry, or stream.schema_file"
    ),
    "not_json": Fault("not JSON", "send JSON, or Arrow with the header freshet-encoding"),
    "empty": Fault("an empty message", "the producer must not send it"),
    "not_an_object": Fault("not a JSON object", "the producer must send one object a message"),
    "missing_field": Fault(
        "a required field is missing",
        "name its path in stream.fields, stream.item_fields, or stream.user_fields",
    ),
    "not_arrow": Fault("not a readable Arrow message", "the producer must correct it"),
    "unknown_encoding": Fault("an unknown encoding", "the header freshet-encoding must be json or arrow"),
    "undecodable": Fault("cannot be decoded", "the producer must correct it"),
    "id_clash": Fault("two ids with one hash", "rename one of them"),
    "bad_key": Fault("the message key is not the id", "key the record by its id"),
    "wrong_partition": Fault(
        "the user belongs to another partition",
        "key messages by the user id, with partitioner=murmur2_random in producers of librdkafka, or set "
        "stream.partition_by=repartition",
    ),
    "future": Fault("far ahead of the broker's time", "stream.max_future_s or stream.timestamp_unit"),
    "late": Fault("too late", "stream.max_late_s"),
    "bad_time": Fault("not a time", "stream.timestamp_unit"),
    "bad_weight": Fault("a weight out of bounds", "stream.max_weight or stream.action_weights"),
    "bad_value": Fault("a value out of bounds", "stream.max_value"),
    "wrong_type": Fault("a field of another type", "stream.fields must name a field of this type"),
    "other": Fault("another fault", "see the reason"),
    "implausible_time": Fault(
        "a time before 1971", "stream.timestamp_unit (seconds are read as milliseconds?)", is_used=True
    ),
    "flat_attributes": Fault(
        "user attributes beside the id instead of in an object",
        "stream.user_fields=[attributes=.]",
        is_used=True,
    ),
    "unnamed_attributes": Fault(
        "user attributes, but none that a setting names",
        "stream.user_attributes or stream.user_fields",
        is_used=True,
    ),
    "no_title": Fault("no title, but a field like one", "stream.item_fields=[title=name]", is_used=True),
}
"""By code."""

LETTERS = tuple(code for code, fault in FAULTS.items() if not fault.is_used)
"""Codes of dead letters."""


class Reason(str):
    """What is wrong with a row, in words for people, with the code of its kind.

    Attributes:
        code: one of `LETTERS`.
    """

    code: str

    def __new__(cls, code: str, text: str) -> Self:
        """The text with its code."""
        reason = super().__new__(cls, text)
        reason.code = code
        return reason

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        """For copies, which keep the code."""
        return type(self), (self.code, str(self))


def code_of(reason: str) -> str:
    """The code of a reason; other for one without a code."""
    return reason.code if isinstance(reason, Reason) else "other"
