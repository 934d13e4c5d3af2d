"""One vocabulary for what is wrong with data, used by dead letters, counters, `freshet check`, and lists."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        meaning: in a few words, for people.
        remedy: the setting to change, or what the producer must do.
        pattern: matches the reasons of dead letters of this kind; empty for what is used all the same.
    """

    meaning: str
    remedy: str
    pattern: str = ""


FAULTS: dict[str, Fault] = {
    "quarantined": Fault(
        "training on it failed",
        "see train.max_poison_batches",
        r"quarantined: |training step \d+ was refused",
    ),
    "too_large": Fault(
        "larger than a limit",
        "raise the limit that the reason names",
        r".*(more than stream\.max_(message|decoded)_|decompresses to more than|stream\.max_decoded_bytes=)",
    ),
    "schema": Fault(
        "does not fit its schema",
        "stream.message_format, stream.schema_registry, or stream.schema_file",
        r"(does not fit the schema|no schema id|schema \d+ )",
    ),
    "not_json": Fault("not JSON", "send JSON, or Arrow with the header freshet-encoding", r"not JSON: "),
    "empty": Fault("an empty message", "the producer must not send it", r"the message is empty"),
    "not_an_object": Fault(
        "not a JSON object", "the producer must send one object a message", r"(an event|a record) must be "
    ),
    "missing_field": Fault(
        "a required field is missing",
        "name its path in stream.fields, stream.item_fields, or stream.user_fields",
        r"\w+ is missing|not a usable Arrow message: .*column \w+ is missing",
    ),
    "not_arrow": Fault("not a readable Arrow message", "the producer must correct it", r"not a usable Arrow"),
    "unknown_encoding": Fault(
        "an unknown encoding", "the header freshet-encoding must be json or arrow", r"freshet-encoding must"
    ),
    "undecodable": Fault(
        "cannot be decoded",
        "the producer must correct it",
        r"cannot be (decoded|read)|the message cannot be parsed|messages up to offset|the compressed batch",
    ),
    "id_clash": Fault(
        "two ids with one hash", "rename one of them", r".*(same 64-bit hash|also the 64-bit hash)"
    ),
    "bad_key": Fault(
        "the message key is not the id", "key the record by its id", r"the key |a tombstone needs"
    ),
    "wrong_partition": Fault(
        "the user belongs to another partition",
        "key messages by the user id, with partitioner=murmur2_random in producers of librdkafka",
        r"the user belongs to partition",
    ),
    "future": Fault(
        "far ahead of the broker's time",
        "stream.max_future_s or stream.timestamp_unit",
        r"timestamp_ms is .* ahead",
    ),
    "late": Fault("too late", "stream.max_late_s", r"timestamp_ms is behind"),
    "bad_time": Fault(
        "not a time", "stream.timestamp_unit", r"timestamp_ms must be (positive|before|a 64-bit|an int64)"
    ),
    "bad_weight": Fault(
        "a weight out of bounds",
        "stream.max_weight or stream.action_weights",
        r"weight (must be (finite|above)|times)",
    ),
    "bad_value": Fault("a value out of bounds", "stream.max_value", r"value must be (finite|from)"),
    "wrong_type": Fault(
        "a field of another type", "stream.fields must name a field of this type", r".* must (be|fit) "
    ),
    "other": Fault("another fault", "see the reason", r""),
    "implausible_time": Fault(
        "a time before 1971", "stream.timestamp_unit (seconds are read as milliseconds?)"
    ),
    "flat_attributes": Fault(
        "user attributes beside the id instead of in an object", "stream.user_fields=[attributes=.]"
    ),
    "unnamed_attributes": Fault(
        "user attributes, but none that a setting names", "stream.user_attributes or stream.user_fields"
    ),
    "no_title": Fault("no title, but a field like one", "stream.item_fields=[title=name]"),
}
"""By code, the first one that matches a reason counts; those without a pattern are only counted."""

LETTERS = tuple(code for code, fault in FAULTS.items() if fault.pattern or code == "other")
"""Codes of dead letters."""
_PATTERNS = {code: re.compile(fault.pattern, re.DOTALL) for code, fault in FAULTS.items() if fault.pattern}


def code_of(reason: str) -> str:
    """The code of a dead letter's reason; also of letters that earlier versions wrote."""
    return next((code for code, pattern in _PATTERNS.items() if pattern.match(reason)), "other")
