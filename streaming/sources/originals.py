"""Reads rows of a topic again as their producers wrote them, for dead letters of events that are already decoded."""

import logging
import time
from collections.abc import Iterable

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from streaming.codecs import arrow_events
from streaming.codecs.codec import ARROW, encoding_of
from streaming.config import StreamConfig
from streaming.events.position import RowPlace
from streaming.events.quoting import described
from streaming.events.validation import Message
from streaming.kafka.consumer import open_consumer
from streaming.kafka.topics import BrokerRefused, BrokerUnavailable

_log = logging.getLogger(__name__)


def read_originals(config: StreamConfig, topic: str, places: Iterable[RowPlace]) -> dict[RowPlace, bytes]:
    """The message's bytes, or the JSON of one row of an Arrow message, for each position that can still be read."""
    wanted: dict[int, dict[int, list[RowPlace]]] = {}
    for place in places:
        wanted.setdefault(place.partition, {}).setdefault(place.offset, []).append(place)
    found: dict[RowPlace, bytes] = {}
    try:
        consumer = open_consumer(config)
        try:
            for partition, offsets in wanted.items():
                found |= _read(consumer, TopicPartition(topic, partition), offsets, config.request_timeout_s)
        finally:
            consumer.close(autocommit=False, timeout_ms=1000)
    except (KafkaError, BrokerUnavailable, BrokerRefused) as error:
        _log.warning("%d events could not be read again: %s", sum(map(len, wanted.values())), error)
    return found


def _read(
    consumer: KafkaConsumer, at: TopicPartition, wanted: dict[int, list[RowPlace]], timeout_s: float
) -> dict[RowPlace, bytes]:
    found: dict[RowPlace, bytes] = {}
    consumer.assign([at])
    consumer.seek(at, min(wanted))
    deadline = time.monotonic() + timeout_s
    while consumer.position(at) <= max(wanted) and time.monotonic() < deadline:
        for message in consumer.poll(timeout_ms=500).get(at, []):
            places = wanted.get(message.offset, [])
            if places and encoding_of(message) == ARROW:
                found |= _rows(message, places)
            else:
                found |= dict.fromkeys(places, message.value or b"")
    return found


def _rows(message: Message, places: list[RowPlace]) -> dict[RowPlace, bytes]:
    """Rows of an Arrow message; none if the message has changed since it was decoded."""
    try:
        rows = arrow_events.rows_json(message.value or b"", [place.row for place in places])
    except Exception as error:
        _log.warning("the message at offset %d could not be read again: %s", message.offset, described(error))
        return {}
    return {place: rows[place.row] for place in places if place.row in rows}
