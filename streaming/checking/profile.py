"""What would be trained from sampled events, and what of a catalogue would be used."""

import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from streaming.catalogue.records import parse_items, parse_users
from streaming.checking.fields import table_of
from streaming.checking.sample import Sample
from streaming.codecs.codec import concatenate, decode_messages
from streaming.config import StreamConfig
from streaming.events.dead_letter import DeadLetter
from streaming.events.ids import INT64_MAX
from streaming.events.mapping import FieldMapping
from streaming.events.partitioner import partition_of_texts
from streaming.events.schema import ACTION, EVENT_SCHEMA, ITEM_ID, TIMESTAMP_MS, USER_ID
from streaming.events.signals import IGNORED, NEGATIVE, POSITIVE, judge_signals
from streaming.events.times import FIRST_PLAUSIBLE_MS
from streaming.events.validation import Decoded, Place
from streaming.field_paths import Path
from streaming.histories.id_texts import KnownTexts

_UNBOUND = 2**31


@dataclass
class Profile:
    """One topic or file, as plain data.

    Attributes:
        name: of the topic or file.
        kind: events, items, or users.
        messages: in the sample.
        rows: in the sample, usable or not.
        usable: those that can be used.
        formats: messages by encoding.
        codecs: batches of messages by what they are compressed with.
        fields: see `fields.table_of`.
        faults: dead letters and plausible mistakes by code.
        examples: a reason of each code.
        facts: further figures, by name.
        objects: decoded records.
    """

    name: str
    kind: str
    messages: int = 0
    rows: int = 0
    usable: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    codecs: dict[str, int] = field(default_factory=dict)
    fields: list[dict[str, Any]] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    objects: Sequence[Mapping[str, Any]] = ()

    def count(self, dead: Sequence[DeadLetter]) -> None:
        """Count dead letters by code, and keep the first reason of each."""
        self.faults |= dict(Counter(letter.code for letter in dead).most_common())
        for letter in dead:
            self.examples.setdefault(letter.code, letter.reason)


def events_profile(config: StreamConfig, sample: Sample) -> Profile:
    """What would be trained from a sample of the interactions topic."""
    pieces = []
    for partition, records in sample.records.items():
        place = Place.of(config, sample.topic, partition, sample.partitions)
        pieces.append(decode_messages(records, _with_texts(place, sample.read)))
    profile = decoded_profile(config, sample.topic, concatenate(pieces), sample.objects())
    profile.messages, profile.formats = sample.count, sample.formats()
    profile.codecs = dict(sample.codecs.most_common())
    profile.facts["partitions"] = sample.partitions
    profile.facts["keys"] = _keys(sample)
    return profile


def decoded_profile(
    config: StreamConfig, name: str, decoded: Decoded, objects: Sequence[Mapping[str, Any]]
) -> Profile:
    """The same from rows that were decoded, of a topic or of files.

    Args:
        config: the stream.
        name: of the topic or file.
        decoded: usable rows and dead letters.
        objects: some records with their own names.
    """
    rows, mapping = decoded.rows, FieldMapping.of_events(config)
    paths: Mapping[str, Path] = mapping.paths if mapping else {n: (n,) for n in EVENT_SCHEMA.names}
    profile = Profile(name, "events", rows.num_rows + len(decoded.dead), decoded.row_count, rows.num_rows)
    profile.objects, profile.fields = objects, table_of(objects, paths)
    profile.count(decoded.dead)
    sign_N, _ = judge_signals(rows, config)
    time_N = rows[TIMESTAMP_MS].to_numpy()
    if early := int((time_N < FIRST_PLAUSIBLE_MS).sum()):
        profile.faults["implausible_time"] = early
    actions = Counter("(none)" if action is None else action for action in rows[ACTION].to_pylist())
    profile.facts |= {
        "users": len(np.unique(rows[USER_ID].to_numpy())),
        "items": len(np.unique(rows[ITEM_ID].to_numpy())),
        "first_ms": int(time_N.min(initial=INT64_MAX)) if len(time_N) else None,
        "last_ms": int(time_N.max(initial=0)) if len(time_N) else None,
        "unit": config.timestamp_unit,
        "actions": dict(actions.most_common(20)),
        "positive": int((sign_N == POSITIVE).sum()),
        "negative": int((sign_N == NEGATIVE).sum()),
        "ignored": int((sign_N == IGNORED).sum()),
    }
    return profile


def catalogue_profile(config: StreamConfig, sample: Sample, kind: str) -> Profile:
    """What of a sample of the items or users topic would be used.

    Args:
        config: the stream.
        sample: of the topic.
        kind: items or users.
    """
    hints: Counter[str] = Counter()
    records = [record for records in sample.records.values() for record in records]
    if kind == "items":
        mapping = FieldMapping.of_items(config)
        found, dead = parse_items(records, mapping, KnownTexts(), hints, sample.read)
        paths = mapping.paths if mapping else {n: (n,) for n in ("item_id", "title", "categories")}
        facts = {
            "with_title": len(found["title"].drop_null()),
            "with_categories": _nonempty(found["categories"]),
        }
    else:
        mapping = FieldMapping.of_users(config)
        found, dead = parse_users(records, config.user_attributes, mapping, KnownTexts(), hints, sample.read)
        paths = mapping.paths if mapping else {n: (n,) for n in ("user_id", "attributes")}
        facts = {"with_attributes": _nonzero(found["attributes"])}
    profile = Profile(sample.topic, kind, sample.count, sample.count, found.num_rows, sample.formats())
    profile.objects, profile.codecs = sample.objects(), dict(sample.codecs.most_common())
    profile.fields, profile.facts = table_of(profile.objects, paths), facts
    profile.count(dead)
    profile.faults |= hints
    return profile


def _with_texts(place: Place, read: Callable[[bytes], Any] | None) -> Place:
    return replace(place, texts=KnownTexts(), read=read)


def _keys(sample: Sample) -> dict[str, Any]:
    """How messages are keyed, and which partitioner explains where they are."""
    keyed = [(p, r.key) for p, records in sample.records.items() for r in records if r.key]
    texts = [key.decode("utf-8", "replace") for _, key in keyed]
    at = [p for p, _ in keyed]
    murmur = partition_of_texts(pa.array(texts, pa.string()), sample.partitions).tolist() if keyed else []
    crc = [(zlib.crc32(key) % _UNBOUND) % sample.partitions for _, key in keyed]
    return {
        "with_key": len(keyed),
        "as_murmur2": sum(a == b for a, b in zip(at, murmur, strict=True)),
        "as_crc32": sum(a == b for a, b in zip(at, crc, strict=True)),
    }


def _nonempty(lists: pa.ChunkedArray) -> int:
    return sum(1 for one in lists.to_pylist() if one)


def _nonzero(lists: pa.ChunkedArray) -> int:
    return sum(1 for one in lists.to_pylist() if any(one or ()))
