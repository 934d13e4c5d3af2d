"""Column names and Arrow schemas of everything that enters or leaves `streaming`."""

import pyarrow as pa

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP_MS = "timestamp_ms"
ACTION = "action"
WEIGHT = "weight"
VALUE = "value"
EVENT_ID = "event_id"

PARTITION = "partition"
KEY_HASH = "key_hash"
OFFSET = "offset"
ROW = "row"
APPEND_MS = "append_ms"

ITEMS = "items"
TIMES_MS = "times_ms"
CONTEXT_LENGTH = "context_length"
EVENTS = "events"
EVENTS_BEFORE = "events_before"
ATTRIBUTES = "attributes"
SEEN = "seen"
NEGATIVES = "negatives"
SIGN = "sign"

TITLE = "title"
CATEGORIES = "categories"
DELETED = "deleted"

REQUIRED_COLUMNS = (USER_ID, ITEM_ID, TIMESTAMP_MS)

# An event on the wire. The three required columns come first; ids may also travel as strings.
EVENT_SCHEMA = pa.schema(
    [
        (USER_ID, pa.int64()),
        (ITEM_ID, pa.int64()),
        (TIMESTAMP_MS, pa.int64()),
        (ACTION, pa.string()),
        (WEIGHT, pa.float32()),
        (VALUE, pa.float32()),
        (EVENT_ID, pa.string()),
    ]
)

# A row's position in the log, and when the broker appended it.
POSITION_FIELDS = [
    pa.field(PARTITION, pa.int32()),
    pa.field(OFFSET, pa.int64()),
    pa.field(ROW, pa.int32()),
    pa.field(APPEND_MS, pa.int64()),
]

# A decoded, usable event: ids are int64, weight is never null, rows are in (offset, row) order. `key_hash` is Kafka's
# hash of the user id as text: `key_hash % partitions` is the user's partition for any number of partitions.
DECODED_SCHEMA = pa.schema([*EVENT_SCHEMA, *POSITION_FIELDS, (KEY_HASH, pa.int32())])

# One row per run of one user's consecutive events, prefix-packed (docs/reference/batch.md).
TRAINING_BATCH_SCHEMA = pa.schema(
    [
        (USER_ID, pa.int64()),
        (ITEMS, pa.list_(pa.int64())),
        (TIMES_MS, pa.list_(pa.int64())),
        (CONTEXT_LENGTH, pa.int32()),
        (EVENTS_BEFORE, pa.int64()),
        (ATTRIBUTES, pa.list_(pa.int64())),
        (SEEN, pa.list_(pa.int64())),
        (PARTITION, pa.int32()),
        (OFFSET, pa.list_(pa.int64())),
        (ROW, pa.list_(pa.int32())),
        (APPEND_MS, pa.list_(pa.int64())),
        (WEIGHT, pa.list_(pa.float32())),
        (NEGATIVES, pa.list_(pa.int64())),
    ]
)

# Usable rows that are not targets of a training batch: sign -1 for an explicit negative, 0 ignored, 2 a duplicate.
SET_ASIDE_SCHEMA = pa.schema(
    [
        (USER_ID, pa.int64()),
        (PARTITION, pa.int32()),
        (OFFSET, pa.int64()),
        (ROW, pa.int32()),
        (SIGN, pa.int8()),
    ]
)

# One user's state in a checkpoint: number of events, the last events, and the last explicit negatives, oldest first.
HISTORY_SCHEMA = pa.schema(
    [
        (USER_ID, pa.int64()),
        (PARTITION, pa.int32()),
        (KEY_HASH, pa.int32()),
        (EVENTS, pa.int64()),
        (ITEMS, pa.large_list(pa.int64())),
        (TIMES_MS, pa.large_list(pa.int64())),
        (NEGATIVES, pa.large_list(pa.int64())),
    ]
)

# Records of items and users from the compacted topics; `deleted` marks a tombstone.
ITEM_SCHEMA = pa.schema(
    [
        (ITEM_ID, pa.int64()),
        (TITLE, pa.string()),
        (CATEGORIES, pa.list_(pa.int64())),
        (DELETED, pa.bool_()),
    ]
)
USER_SCHEMA = pa.schema([(USER_ID, pa.int64()), (ATTRIBUTES, pa.list_(pa.int64())), (DELETED, pa.bool_())])


def empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    """A RecordBatch of no rows."""
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
