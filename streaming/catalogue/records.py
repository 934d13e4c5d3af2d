"""Turns records of the items and users topics into columns.

A record's key is the id as text, and its value is JSON; an empty value deletes. A record that cannot be used becomes a
dead letter and changes nothing. Shapes: R records.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import orjson
import pyarrow as pa

from streaming.catalogue.hints import hint_of_item, hint_of_user
from streaming.codecs.codec import ENCODING_HEADER
from streaming.codecs.json_events import loads
from streaming.codecs.schemas.reader import UnfitMessage
from streaming.codecs.schemas.registry import RegistryUnavailable
from streaming.config import StreamSettingError
from streaming.events.dead_letter import DeadLetter
from streaming.events.faults import Reason
from streaming.events.hashing import feature_ids
from streaming.events.ids import integer_ids, problem_of_id, read_ids, text_of_id
from streaming.events.mapping import FieldMapping
from streaming.events.quoting import described, quoted
from streaming.events.schema import ATTRIBUTES, CATEGORIES, ITEM_ID, ITEM_SCHEMA, TITLE, USER_ID, USER_SCHEMA
from streaming.events.unreadable import Unreadable
from streaming.events.validation import KnownTextIds, TextIds, clash_reason
from streaming.histories.id_index import IdIndex

_FIELDS = (ITEM_ID, TITLE, CATEGORIES, USER_ID, ATTRIBUTES)
_log = logging.getLogger(__name__)


class CatalogueRecord(Protocol):
    """The part of a Kafka record that is read."""

    @property
    def topic(self) -> str:
        """Topic."""

    @property
    def partition(self) -> int:
        """Partition."""

    @property
    def offset(self) -> int:
        """Offset in the partition."""

    @property
    def key(self) -> bytes | None:
        """The id as text."""

    @property
    def value(self) -> bytes | None:
        """JSON; empty in a tombstone."""


@dataclass
class CatalogueUpdate:
    """Records of items and users, oldest first; the last record of an id wins.

    Attributes:
        items: ITEM_SCHEMA.
        users: USER_SCHEMA, attributes in the order of `stream.user_attributes`.
    """

    items: pa.Table
    users: pa.Table

    def to_bytes(self) -> bytes:
        """Both tables as two Arrow IPC streams, one after the other."""
        sink = pa.BufferOutputStream()
        for table in (self.items, self.users):
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
        return bytes(sink.getvalue())

    @classmethod
    def from_bytes(cls, data: bytes) -> "CatalogueUpdate":
        """The update that `to_bytes` wrote."""
        source = pa.BufferReader(data)
        return cls(*(pa.ipc.open_stream(source).read_all() for _ in range(2)))


def last_records(records: pa.Table, key: str) -> pa.Table:
    """The last record of each id, in order of the ids' first records; the records themselves if no id repeats.

    Args:
        records: ITEM_SCHEMA or USER_SCHEMA, oldest first.
        key: the name of their id.
    """
    ids = records[key].to_numpy()
    index = IdIndex()
    place_R = index.add(ids)
    if len(index) == ids.shape[0]:
        return records
    last = np.empty(len(index), np.int64)
    last[place_R] = np.arange(ids.shape[0])
    return records.take(last)


@dataclass
class _Usable:
    """Usable records of one topic, and dead letters of the others."""

    records: list[CatalogueRecord] = field(default_factory=list)
    ids: list[Any] = field(default_factory=list)
    deleted: list[bool] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    originals: list[dict[str, Any]] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)


def parse_items(
    records: Sequence[CatalogueRecord],
    mapping: FieldMapping | None = None,
    texts: KnownTextIds | None = None,
    hints: Counter[str] | None = None,
    read: Callable[[bytes], Any] | None = None,
) -> tuple[pa.Table, list[DeadLetter]]:
    """Records of the items topic as ITEM_SCHEMA, and those that cannot be used.

    `hints` counts plausible mistakes in usable records, by codes of `streaming.events.faults`; `read` decodes records
    by their schemas, and by default they are JSON.
    """
    usable = _parse(records, ITEM_ID, _problem_of_item, mapping, texts.items if texts else None, read)
    if hints is not None:
        hints.update(code for entry in usable.originals if (code := hint_of_item(entry, mapping)))
    categories = [_categories(entry) for entry in usable.entries]
    flat = pa.array([name for names in categories for name in names], pa.string())
    offset_R = np.concatenate([[0], np.cumsum([len(names) for names in categories])]).astype(np.int32)
    columns = [
        pa.array(integer_ids(usable.ids)),
        pa.array([entry.get(TITLE) or None for entry in usable.entries], pa.string()),
        pa.ListArray.from_arrays(pa.array(offset_R), pa.array(feature_ids(flat))),
        pa.array(usable.deleted, pa.bool_()),
    ]
    return pa.table(columns, schema=ITEM_SCHEMA), usable.dead


def parse_users(
    records: Sequence[CatalogueRecord],
    names: list[str],
    mapping: FieldMapping | None = None,
    texts: KnownTextIds | None = None,
    hints: Counter[str] | None = None,
    read: Callable[[bytes], Any] | None = None,
) -> tuple[pa.Table, list[DeadLetter]]:
    """Records of the users topic as USER_SCHEMA with these attributes, and those that cannot be used.

    Attributes of other names may be anything. `hints` and `read` as for items.
    """
    of_users = texts.users if texts else None
    usable = _parse(records, USER_ID, lambda entry: _problem_of_user(entry, names), mapping, of_users, read)
    if hints is not None:
        hints.update(code for entry in usable.originals if (code := hint_of_user(entry, names, mapping)))
    values = [(entry.get(ATTRIBUTES) or {}).get(name) for entry in usable.entries for name in names]
    pairs = [f"{name}={value}" for name, value in zip(names * len(usable.ids), values, strict=True)]
    ids = feature_ids(pa.array(pairs, pa.string()))
    ids[np.array([value is None or value == "" for value in values], np.bool_)] = 0
    offset_R = np.arange(len(usable.ids) + 1, dtype=np.int32) * np.int32(len(names))
    columns = [
        pa.array(integer_ids(usable.ids)),
        pa.ListArray.from_arrays(pa.array(offset_R), pa.array(ids)),
        pa.array(usable.deleted, pa.bool_()),
    ]
    return pa.table(columns, schema=USER_SCHEMA), usable.dead


def _parse(
    records: Sequence[CatalogueRecord],
    id_name: str,
    problem_of: Callable[[dict[str, Any]], str],
    mapping: FieldMapping | None,
    texts: TextIds | None,
    read: Callable[[bytes], Any] | None,
) -> _Usable:
    usable = _Usable()
    for record in records:
        try:
            identifier, original, problem = _entry(record, id_name, mapping, read)
            entry = mapping.record(original) if mapping else original
            problem = problem or problem_of(entry)
            problem = mapping.explained(problem) if mapping and problem else problem
        except (RegistryUnavailable, StreamSettingError):
            raise  # no fault of the record
        except UnfitMessage as error:
            problem = Reason("schema", str(error))
        except Exception as error:  # an exception costs only the record that raised it
            problem = Reason("undecodable", f"cannot be read: {described(error)}")
            _log.warning("the record at %s/%d/%d %s", record.topic, record.partition, record.offset, problem)
        if problem:
            usable.dead.append(_dead(record, problem))
            continue
        usable.records.append(record)
        usable.ids.append(identifier)
        usable.deleted.append(not record.value)
        usable.entries.append(entry)
        usable.originals.append(original)
    if texts is not None:
        _refuse_clashes(usable, id_name, texts)
    return usable


def _refuse_clashes(usable: _Usable, id_name: str, texts: TextIds) -> None:
    """Remember the texts of ids; records whose id belongs to another text become dead letters."""
    deleted_R = np.array(usable.deleted, np.bool_)
    read = read_ids(usable.ids)
    text_at_Q = np.array(read.text_at, np.int64)
    clash_R = np.zeros(len(deleted_R), np.bool_)
    live = np.flatnonzero(~deleted_R)
    place_R = np.cumsum(~deleted_R) - 1
    of_live_Q = ~deleted_R[text_at_Q]
    clash = texts.clashes(
        read.ids_N[live], place_R[text_at_Q[of_live_Q]], read.texts.filter(pa.array(of_live_Q))
    )
    if clash is not None:
        clash_R[live[clash]] = True
    # A tombstone makes no id known.
    clash_R[text_at_Q] |= texts.differs(read.ids_N[text_at_Q], read.texts)
    for n in np.flatnonzero(clash_R)[::-1].tolist():
        (first,) = texts.texts(read.ids_N[n : n + 1])
        record, given = usable.records.pop(n), usable.ids.pop(n)
        del usable.deleted[n], usable.entries[n], usable.originals[n]
        usable.dead.append(_dead(record, clash_reason(id_name, given, first or "")))


def _dead(record: CatalogueRecord, reason: str) -> DeadLetter:
    return DeadLetter(reason, record.topic, record.partition, record.offset, 0, record.value or b"")


def _entry(
    record: CatalogueRecord,
    id_name: str,
    mapping: FieldMapping | None,
    read: Callable[[bytes], Any] | None,
) -> tuple[Any, dict[str, Any], str]:
    """The id, the decoded value (empty for a tombstone), and what is wrong with either."""
    if isinstance(record.value, Unreadable):
        return None, {}, record.value.reason
    key = _key(record, read)
    if not record.value:
        if not key:
            return None, {}, Reason("bad_key", "a tombstone needs the id as its key")
        try:
            return key.decode(), {}, ""
        except UnicodeDecodeError:
            said = f"the key of a tombstone must be the id as UTF-8, got {quoted(key)}"
            return None, {}, Reason("bad_key", said)
    try:
        if read is not None and not _has_encoding(record):
            entry = read(record.value)
        else:
            entry = loads(record.value, mapping.names if mapping else _FIELDS)
    except orjson.JSONDecodeError as error:
        return None, {}, Reason("not_json", f"not JSON: {error}")
    if type(entry) is not dict:
        said = f"a record must be a JSON object, not {type(entry).__name__}"
        return None, {}, Reason("not_an_object", said)
    identifier: Any = (mapping.record(entry) if mapping else entry).get(id_name)
    problem = problem_of_id(id_name, identifier)
    if not problem and key is not None and key != text_of_id(identifier).encode():
        problem = Reason("bad_key", f"the key is {quoted(key)}, but {id_name} is {quoted(identifier)}")
    return identifier, entry, problem


def _key(record: CatalogueRecord, read: Callable[[bytes], Any] | None) -> bytes | None:
    """The key as text; one with a schema's id in front is decoded like a value."""
    if read is None or not record.key or record.key[0] != 0:
        return record.key
    return str(read(record.key)).encode()


def _has_encoding(record: CatalogueRecord) -> bool:
    return any(name == ENCODING_HEADER for name, _ in getattr(record, "headers", None) or ())


def _problem_of_item(entry: dict[str, Any]) -> str:
    title, categories = entry.get(TITLE), entry.get(CATEGORIES)
    if title is not None and type(title) is not str:
        return Reason("wrong_type", f"{TITLE} must be a string, got {quoted(title)}")
    if categories is None:
        return ""
    if type(categories) is not list or any(type(name) not in (str, int) for name in categories):
        return Reason("wrong_type", f"{CATEGORIES} must be a list of strings, got {quoted(categories)}")
    return ""


def _categories(entry: dict[str, Any]) -> list[str]:
    names = entry.get(CATEGORIES) or []
    return [str(name) for name in names if name != ""]


def _problem_of_user(entry: dict[str, Any], names: Sequence[str]) -> str:
    attributes = entry.get(ATTRIBUTES)
    if attributes is None:
        return ""
    if type(attributes) is not dict:
        return Reason("wrong_type", f"{ATTRIBUTES} must be an object, got {quoted(attributes)}")
    for name in names:
        value = attributes.get(name)
        if value is not None and type(value) not in (str, int, float):
            return Reason("wrong_type", f"attribute {name} must be a string or a number, got {quoted(value)}")
    return ""
