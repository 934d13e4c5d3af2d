"""A sample of a topic: the last messages of each partition, as they are."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from kafka import TopicPartition
from kafka.errors import KafkaError

from streaming.codecs.arrow_events import rows_json
from streaming.codecs.codec import ARROW, JSON, encoding_of
from streaming.codecs.schemas.reader import Kind, reader_of
from streaming.config import StreamConfig
from streaming.kafka.consumer import known_partitions, open_consumer, unavailable

_ROWS_OF_ARROW = 20


@dataclass
class Sample:
    """Messages of one topic.

    Attributes:
        topic: its name.
        partitions: how many the topic has.
        records: Kafka records, by partition, oldest first.
        codecs: batches of messages by what they are compressed with.
        read: decodes messages without an encoding's header, by a schema; None: they are JSON.
    """

    topic: str
    partitions: int
    records: dict[int, list[Any]] = field(default_factory=dict)
    read: Callable[[bytes], Any] | None = None
    codecs: Counter[str] = field(default_factory=Counter)

    @property
    def count(self) -> int:
        """Messages in the sample."""
        return sum(map(len, self.records.values()))

    def formats(self) -> dict[str, int]:
        """Messages by encoding."""
        without = JSON if self.read is None else b"of a schema"
        named = Counter(encoding_of(r, without).decode("utf-8", "replace") for r in self._all() if r.value)
        return dict(named.most_common())

    def objects(self) -> list[dict[str, Any]]:
        """Decoded JSON objects, and the first rows of Arrow messages; what cannot be decoded is left out."""
        found: list[Any] = []
        for record in self._all():
            try:
                if encoding_of(record) == ARROW:
                    found += map(orjson.loads, rows_json(record.value, range(_ROWS_OF_ARROW)).values())
                elif record.value and self.read is not None and encoding_of(record, b"") == b"":
                    found.append(self.read(record.value))
                elif encoding_of(record) == JSON and record.value:
                    found.append(orjson.loads(record.value))
            except Exception:  # whatever is in the message; the dead letters say what is wrong with it
                continue
        return [one for one in found if type(one) is dict]

    def _all(self) -> list[Any]:
        return [record for records in self.records.values() for record in records]


def sample_of(config: StreamConfig, topic: str, kind: Kind, most: int) -> Sample:
    """The last messages of a topic.

    Args:
        config: the stream.
        topic: its name.
        kind: of the topic.
        most: about how many messages.
    Raises:
        BrokerUnavailable: no broker answered.
        TopicMissing: the topic does not exist.
    """
    codecs: Counter[str] = Counter()
    consumer = open_consumer(config, codecs)
    try:
        places = [TopicPartition(topic, p) for p in known_partitions(config, consumer, topic)]
        consumer.assign(places)
        first, end = consumer.beginning_offsets(places), consumer.end_offsets(places)
        each = max(1, most // len(places))
        for at in places:
            consumer.seek(at, max(first[at], end[at] - each))
        sample = Sample(
            topic, len(places), {at.partition: [] for at in places}, reader_of(config, kind), codecs
        )
        deadline = time.monotonic() + config.request_timeout_s
        while any((consumer.position(at) or 0) < end[at] for at in places):
            for at, records in consumer.poll(timeout_ms=200).items():
                sample.records[at.partition] += [r for r in records if r.offset < end[at]]
            if time.monotonic() > deadline:
                break
        return sample
    except KafkaError as error:
        raise unavailable(config, error) from error
    finally:
        consumer.close(autocommit=False, timeout_ms=1000)
