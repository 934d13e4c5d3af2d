"""Every reason of a dead letter has one code, and every code a remedy."""

import pytest

from streaming.events.faults import FAULTS, LETTERS, code_of

REASONS = {
    "item_id is missing": "missing_field",
    "user_id is missing (stream.fields reads it from visitor.id)": "missing_field",
    "not a usable Arrow message: _UnreadableError: column user_id is missing (it has a, b)": "missing_field",
    "not a usable Arrow message: ArrowInvalid: Tried reading schema message": "not_arrow",
    "not a usable Arrow message: ArrowLimitError: it declares 9 rows, more than stream.max_message_rows=5": "too_large",
    "the message has 900 bytes, more than stream.max_message_bytes=5": "too_large",
    "the compressed batch of messages (offsets up to 3) cannot be read: it decompresses to more than 5 bytes (lz4), "
    "stream.max_decoded_bytes=5": "too_large",
    "the compressed batch of messages (offsets up to 3) cannot be read: it ends too early": "undecodable",
    "messages up to offset 4 cannot be separated: x": "undecodable",
    "cannot be decoded: ValueError: x": "undecodable",
    "cannot be read: ValueError: x": "undecodable",
    "not JSON: unexpected character": "not_json",
    "the message is empty": "empty",
    "an event must be a JSON object, not list": "not_an_object",
    "a record must be a JSON object, not list": "not_an_object",
    "freshet-encoding must be json or arrow, got b'x'": "unknown_encoding",
    "user_id 'a' has the same 64-bit hash as 'b', which came first: rename one of them": "id_clash",
    "item_id 5 is also the 64-bit hash of the text 'b', which came first": "id_clash",
    "the key is b'1', but item_id is 2": "bad_key",
    "the key of a tombstone must be the id as UTF-8, got b'x'": "bad_key",
    "a tombstone needs the id as its key": "bad_key",
    "the user belongs to partition 3 of 4, but the row was read from partition 1": "wrong_partition",
    "timestamp_ms is 99 s ahead of the broker's time (stream.max_future_s=5)": "future",
    "timestamp_ms is behind the partition's latest by more than stream.max_late_s=5": "late",
    "timestamp_ms must be positive, got 0": "bad_time",
    "timestamp_ms must be before the year 10000, got 999999999999999": "bad_time",
    "timestamp_ms must be a 64-bit integer, got 'x' (stream.timestamp_unit=s)": "bad_time",
    "timestamp_ms must be an int64 (milliseconds since 1970) or a timestamp, got 'x' (string)": "bad_time",
    "weight must be finite, got nan": "bad_weight",
    "weight must be above 0 and at most 5 (stream.max_weight), got 9": "bad_weight",
    "weight times the 2 of its action (stream.action_weights) must be above 0 and at most 5": "bad_weight",
    "weight must be a number, got 'x'": "wrong_type",
    "value must be from -5 to 5 (stream.max_value), got 9": "bad_value",
    "value must be a number, got 'x'": "wrong_type",
    "user_id must be an integer or a string, got True": "wrong_type",
    "user_id must fit in 64 bits, got 99999999999999999999999": "wrong_type",
    "attribute age must be a string or a number, got []": "wrong_type",
    "quarantined: training step 5 was refused (loss is not finite)": "quarantined",
    "does not fit the schema 17: EOFError": "schema",
    "no schema id: the message does not begin with a zero byte": "schema",
    "schema 17 is not in the registry http://r": "schema",
    "something else": "other",
}


@pytest.mark.parametrize(("reason", "code"), REASONS.items())
def test_each_reason_has_its_code(reason, code):
    assert code_of(reason) == code


def test_every_code_of_a_letter_is_met_and_has_a_remedy():
    assert set(REASONS.values()) == set(LETTERS)
    assert all(fault.remedy and fault.meaning for fault in FAULTS.values())
