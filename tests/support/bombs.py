"""Messages of a few kilobytes that decode to gigabytes, as a hostile producer could send them."""

import struct
from collections.abc import Mapping

import numpy as np
import orjson
import pyarrow as pa
from kafka.record.default_records import DefaultRecordBatchBuilder

from streaming.codecs.codec import ARROW, ENCODING_HEADER

ARROW_HEADERS = [(ENCODING_HEADER, ARROW)]
START_MS = 1_700_000_000_000
ROWS = 60_000
"""The maximum number of rows of a message, or nearly."""
_MEGABYTE = "x" * 1_000_000


def ipc(batch: pa.RecordBatch, compression: str | None = None) -> bytes:
    """One IPC stream of one batch."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def arrow_bombs(users: tuple[int, ...] = (1,)) -> Mapping[str, bytes]:
    """Values of Arrow messages, by description; a few kilobytes each. Each must become one dead letter.

    Args:
        users: ids of users of the partition that they are sent to.
    """
    one = _columns(2_000, users[0])
    few = {name: column.slice(0, 10) for name, column in one.items()}
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2_000, np.int32)), pa.array([_MEGABYTE]))
    many_zeros = pa.array(np.zeros(40_000_000, np.int64))
    children = pa.nulls(50_000_000)
    return {
        "a million rows of nulls": ipc(_nulls(1_000_000)),
        "200 million rows of nulls": ipc(_nulls(200_000_000)),
        "required columns that are null": ipc(_nulls(ROWS)),
        "texts of a dictionary": ipc(_batch(one | {"action": texts}), "zstd"),
        "text ids of a dictionary": ipc(_batch(one | {"item_id": texts}), "lz4"),
        "texts behind views": _views(users[0]),
        "views in a list": _views_in_a_list(users[0]),
        "runs": ipc(_batch(one | {"action": _runs(2_000)}), "zstd"),
        "buffers of zeros": ipc(pa.RecordBatch.from_arrays([many_zeros], names=["user_id"]), "zstd"),
        "buffers that say 2 to the 60": _lying(ipc(_batch(few), "lz4"), 2**60),
        "buffers that say less than nothing": _lying(ipc(_batch(few), "lz4"), -7),
        "lists of nulls": ipc(_batch(few | {"more": _one_list(children)})),
        "lists of fixed size": ipc(
            _batch(few | {"more": pa.FixedSizeListArray.from_arrays(children, 5_000_000)})
        ),
        "dictionaries in parts": _deltas(users[0], 20_000),
        "names that are shared": _shared_names(),
    }


def gzip_batch(value: bytes, headers: int = 0) -> bytes:
    """A record batch of one message as a producer sends it."""
    builder = DefaultRecordBatchBuilder(2, 1, False, -1, -1, -1, 1 << 30)
    builder.append(0, START_MS, None, value, [("h", b"")] * headers)
    return bytes(builder.build())


def wide_json(user: int, megabytes: int) -> bytes:
    """A good event with an unused field: lists take 20 times their length when they are decoded."""
    event = {"user_id": user, "item_id": 1, "timestamp_ms": START_MS}
    return orjson.dumps(event)[:-1] + b',"more":[' + b"[]," * (megabytes * 349_000) + b"0]}"


def _columns(rows: int, user: int) -> dict[str, pa.Array]:
    return {
        "user_id": pa.array(np.full(rows, user)),
        "item_id": pa.array(np.arange(rows)),
        "timestamp_ms": pa.array(START_MS + np.arange(rows)),
    }


def _batch(columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _nulls(rows: int) -> pa.RecordBatch:
    return _batch(dict.fromkeys(("user_id", "item_id", "timestamp_ms"), pa.nulls(rows)))


def _views(user: int) -> bytes:
    text = pa.array([_MEGABYTE], pa.string_view())
    view = np.frombuffer(text.buffers()[1], np.uint8)[:16]
    views = pa.py_buffer(np.tile(view, 2_000).tobytes())
    shared = pa.Array.from_buffers(pa.string_view(), 2_000, [None, views, text.buffers()[2]])
    return ipc(_batch(_columns(2_000, user) | {"action": shared}), "zstd")


def _views_in_a_list(user: int) -> bytes:
    """In an unused column."""
    shared = pa.ipc.open_stream(_views(user)).read_all()["action"].combine_chunks()
    lists = pa.ListArray.from_arrays(pa.array([0, len(shared), len(shared)], pa.int32()), shared)
    return ipc(_batch(_columns(2, user) | {"more": lists}), "zstd")


def _runs(rows: int) -> pa.Array:
    return pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), pa.array([_MEGABYTE]))


def _one_list(children: pa.Array) -> pa.Array:
    ends = np.zeros(11, np.int32)
    ends[1:] = len(children)
    return pa.ListArray.from_arrays(pa.array(ends), children)


def _lying(stream: bytes, length: int) -> bytes:
    """Replace the decompressed length of each buffer, at the beginnings of LZ4's frames."""
    frame = stream.find(b"\x04\x22\x4d\x18")
    while frame > 0:
        stream = stream[: frame - 8] + struct.pack("<q", length) + stream[frame:]
        frame = stream.find(b"\x04\x22\x4d\x18", frame + 4)
    return stream


def _deltas(user: int, parts: int) -> bytes:
    """A dictionary that grows by one text per batch, so that each batch has all texts so far."""
    sink = pa.BufferOutputStream()
    kind = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema([*(_batch(_columns(0, user)).schema), ("action", kind)])
    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
    known = [f"a text of some length, which is number {n} of the dictionary" for n in range(200)]
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        for n in range(1, parts // 100):
            texts = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.array(known[:1] * n * 100))
            columns = _columns(1, user) | {"action": texts}
            writer.write_batch(pa.RecordBatch.from_arrays(list(columns.values()), schema=schema))
    return bytes(sink.getvalue())


def _shared_names() -> bytes:
    """A schema of more than the 64 KiB that one may have: in a FlatBuffer many fields may share one long name."""
    name = "n" * 70_000
    return ipc(_batch(_columns(1, 1) | {name: pa.array([1])}))
