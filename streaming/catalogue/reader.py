"""Reads the compacted topics of items and users: first everything, then new records."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from kafka import TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError, UnknownTopicOrPartitionError

from streaming.catalogue.records import CatalogueUpdate, parse_items, parse_users
from streaming.codecs.schemas.reader import reader_of
from streaming.config import StreamConfig
from streaming.events.dead_letter import DeadLetter
from streaming.events.ids import ids_of_texts
from streaming.events.mapping import FieldMapping
from streaming.events.position import Position
from streaming.events.schema import DELETED, ITEM_SCHEMA, USER_ID, USER_SCHEMA
from streaming.events.validation import KnownTextIds
from streaming.kafka.consumer import known_partitions, open_consumer, unavailable
from streaming.kafka.topic_identity import TopicIdentity
from streaming.kafka.topics import refused

_MOST_RECORDS = 5000
_MOST_KEYS = 10_000
_log = logging.getLogger(__name__)


class CatalogueReader:
    """Follows the items and users topics. One worker does this and sends what it reads to the others.

    Args:
        config: the stream.
        positions: where to continue, by topic and partition, as `positions()` returned them. A partition without a
            position, or whose position is no longer in the log, is read from its beginning; repeated records are
            harmless.
        ids: ids of the topics that the positions refer to, as `ids` returned them. A topic that was deleted and
            recreated has another id and is read from its beginning, also if this happens while it is followed.
        texts: where the texts of text ids are remembered.

    Attributes:
        dead_letters: records that could not be used; the caller takes them and clears the list.
        hints: plausible mistakes in usable records, by code; the caller takes them too.

    Raises:
        BrokerUnavailable: no broker answered within `stream.connect_timeout_s`.
        BrokerRefused: a broker or the client refused permanently.
        TopicMissing: a topic does not exist.
    """

    def __init__(
        self,
        config: StreamConfig,
        positions: Mapping[str, Mapping[int, Position]] | None = None,
        ids: Mapping[str, str] | None = None,
        texts: KnownTextIds | None = None,
    ) -> None:
        self._config = config
        self.dead_letters: list[DeadLetter] = []
        self.hints: Counter[str] = Counter()
        self._tombstones: dict[tuple[str, int], str] = {}
        self._texts = texts
        self._read_item, self._read_user = reader_of(config, "items"), reader_of(config, "users")
        self._of_items, self._of_users = FieldMapping.of_items(config), FieldMapping.of_users(config)
        self._consumer = open_consumer(config)
        try:
            self._next = self._open(positions or {}, ids or {})
        except KafkaError as error:
            self.close()
            raise unavailable(config, error) from error
        except BaseException:
            self.close()
            raise

    def poll(self, timeout_ms: int = 0) -> CatalogueUpdate | None:
        """What has arrived, if anything has; at most a few thousand records at once.

        Raises:
            BrokerRefused: a broker or the client refused permanently. Unreachable brokers count as no records.
        """
        try:
            polled = self._poll(timeout_ms)
        except KafkaError as error:
            if not error.retriable:
                raise refused(self._config, error) from error
            return None
        if not polled:
            return None
        records: dict[str, list[Any]] = {self._config.items_topic: [], self._config.users_topic: []}
        for at, found in polled.items():
            records[at.topic] += found
            self._next[at] = found[-1].offset + 1
        self._note_tombstones(records)
        items, dead_items = parse_items(
            records[self._config.items_topic], self._of_items, self._texts, self.hints, self._read_item
        )
        users, dead_users = parse_users(
            records[self._config.users_topic],
            self._config.user_attributes,
            self._of_users,
            self._texts,
            self.hints,
            self._read_user,
        )
        ids = self.ids
        self.dead_letters += [replace(d, topic_id=ids.get(d.topic, "")) for d in dead_items + dead_users]
        return CatalogueUpdate(items, users)

    def read_to_end(self) -> CatalogueUpdate:
        """Everything up to the current ends of the topics.

        Raises:
            BrokerUnavailable: nothing arrived for `stream.request_timeout_s`.
        """
        try:
            end = self._consumer.end_offsets(list(self._next))
        except KafkaError as error:
            raise unavailable(self._config, error) from error
        items, users = [ITEM_SCHEMA.empty_table()], [USER_SCHEMA.empty_table()]
        deadline = time.monotonic() + self._config.request_timeout_s
        while any(self._reached(at) < end[at] for at in end):
            update = self.poll(timeout_ms=100)
            if update:
                items.append(update.items)
                users.append(update.users)
                deadline = time.monotonic() + self._config.request_timeout_s
            elif time.monotonic() > deadline:
                raise unavailable(self._config, KafkaError("no records arrived"))
        return CatalogueUpdate(pa.concat_tables(items), pa.concat_tables(users))

    @staticmethod
    def last_users(config: StreamConfig, positions: Mapping[str, Mapping[int, Position]]) -> pa.Table:
        """The current content of the users topic, USER_SCHEMA: the last record of each user who is not deleted.

        Args:
            config: the stream; all records are read, also those before `positions`, for its user attributes.
            positions: by topic; with the items' position, items are not read again.
        """
        elsewhere = {topic: at for topic, at in positions.items() if topic != config.users_topic}
        with CatalogueReader(config, elsewhere) as reader:
            users = reader.read_to_end().users.combine_chunks()
        newest_first = users[USER_ID].to_numpy()[::-1]
        last = users.num_rows - 1 - np.unique(newest_first, return_index=True)[1]
        records = users.take(pa.array(np.sort(last)))
        return records.filter(pc.invert(records[DELETED]))

    @property
    def ids(self) -> dict[str, str]:
        """The ids of the topics that the positions refer to, by name, if brokers provide ids."""
        return {topic: i.current for topic, i in self._identities.items() if i.current}

    def positions(self) -> dict[str, dict[int, Position]]:
        """The next record of each partition, by topic."""
        positions: dict[str, dict[int, Position]] = {}
        for at, offset in sorted(self._next.items()):
            positions.setdefault(at.topic, {})[at.partition] = Position(offset, 0)
        return positions

    def text_of_deleted(self, topic: str, identifier: int) -> str:
        """An id as written in the key of its tombstone, if it is among the last ten thousand; else the number."""
        return self._tombstones.get((topic, identifier), str(identifier))

    def _note_tombstones(self, records: Mapping[str, list[Any]]) -> None:
        for topic, of_topic in records.items():
            keys = [r.key.decode("utf-8", "replace") for r in of_topic if r.key and not r.value][-_MOST_KEYS:]
            if keys:
                ids = ids_of_texts(pa.array(keys, pa.string())).tolist()
                self._tombstones |= {(topic, i): key for i, key in zip(ids, keys, strict=True)}
        while len(self._tombstones) > _MOST_KEYS:
            del self._tombstones[next(iter(self._tombstones))]

    def close(self) -> None:
        """Closes the consumer; harmless if repeated."""
        self._consumer.close(autocommit=False, timeout_ms=1000)

    def __enter__(self) -> "CatalogueReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(
        self, positions: Mapping[str, Mapping[int, Position]], ids: Mapping[str, str]
    ) -> dict[TopicPartition, int]:
        places = [
            TopicPartition(topic, partition)
            for topic in (self._config.items_topic, self._config.users_topic)
            for partition in known_partitions(self._config, self._consumer, topic)
        ]
        self._consumer.assign(places)
        every_s = self._config.metadata_every_s
        self._identities = {
            t: TopicIdentity(self._consumer, t, every_s) for t in sorted({at.topic for at in places})
        }
        first, end = self._consumer.beginning_offsets(places), self._consumer.end_offsets(places)
        start = {}
        for at in places:
            saved = positions.get(at.topic, {}).get(at.partition)
            now = self._identities[at.topic].current
            is_anew = bool(now) and ids.get(at.topic, now) != now
            start[at] = first[at] if saved is None else saved.offset
            if (is_anew and saved is not None) or not first[at] <= start[at] <= end[at]:
                _log.warning(
                    "partition %d of %s holds records %d to %d, not %d, where reading was to resume; "
                    "all of it is reread; ids deleted by records that are gone remain in the catalogue",
                    *(at.partition, at.topic, first[at], end[at], start[at]),
                )
                start[at] = first[at]
            self._consumer.seek(at, start[at])
        return start

    def _poll(self, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        """New records of topics whose ids are unchanged; recreated topics are read from their beginning."""
        try:
            polled: dict[TopicPartition, list[Any]] = self._consumer.poll(
                timeout_ms=timeout_ms, max_records=_MOST_RECORDS
            )
        except OffsetOutOfRangeError as error:
            self._read_again(error.args[0], "was trimmed")
            return {}
        for topic, identity in self._identities.items():
            found = identity.renewed()
            if found:
                polled = {at: records for at, records in polled.items() if at.topic != topic}
                self._read_anew(topic)
                identity.current = found
        return polled

    def _read_anew(self, topic: str) -> None:
        """Follow a topic that was recreated, maybe with other partitions; the other topic keeps its position."""
        numbers = self._consumer.partitions_for_topic(topic)
        if not numbers:
            raise UnknownTopicOrPartitionError(topic)  # the next poll tries again
        goes_on = {at: offset for at, offset in self._next.items() if at.topic != topic}
        places = [TopicPartition(topic, number) for number in sorted(numbers)]
        self._consumer.assign([*goes_on, *places])
        for at, offset in goes_on.items():
            self._consumer.seek(at, offset)
        self._next = goes_on
        self._read_again(places, "was deleted and recreated")

    def _read_again(self, places: Iterable[TopicPartition], why: str) -> None:
        """Start from the current beginning; a topic without leaders is tried again with the next poll."""
        again = list(places)
        first = self._consumer.beginning_offsets(again)
        for at in again:
            _log.warning(
                "partition %d of %s %s: all of it is reread; "
                "ids deleted by records that are gone remain in the catalogue",
                *(at.partition, at.topic, why),
            )
            self._consumer.seek(at, first[at])
            self._next[at] = first[at]

    def _reached(self, at: TopicPartition) -> int:
        # Compaction leaves gaps, also at the end; only the consumer's own position is past them.
        return max(self._next[at], self._consumer.position(at, timeout_ms=1000) or 0)
