"""Opens Kafka consumers, and finds what a reader must know about a topic before it starts."""

import base64
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from streaming.config import LostPosition, StreamConfig, client_arguments
from streaming.kafka.clients import open_client
from streaming.kafka.fetching import bound_fetches
from streaming.kafka.record_headers import accept_any_header_key
from streaming.kafka.topics import BrokerRefused, BrokerUnavailable, unavailable

_log = logging.getLogger(__name__)

__all__ = [
    "BrokerRefused",
    "BrokerUnavailable",
    "PositionLost",
    "TopicMissing",
    "end_offsets",
    "open_consumer",
    "partitions_of",
    "unavailable",
]


class TopicMissing(RuntimeError):
    """A topic that should be read does not exist."""


class PositionLost(RuntimeError):
    """The log no longer holds the position from which a reader should continue."""


def partitions_of(config: StreamConfig, topic: str) -> list[int]:
    """The partitions of a topic, ascending.

    Raises:
        BrokerUnavailable: no broker answered within `stream.connect_timeout_s`.
        TopicMissing: the topic does not exist.
    """
    with consumer_of(config) as consumer:
        return known_partitions(config, consumer, topic)


def end_offsets(config: StreamConfig, topic: str) -> dict[int, int]:
    """The current offset after the last readable message of each partition.

    Raises:
        BrokerUnavailable: no broker answered within `stream.connect_timeout_s`.
        TopicMissing: the topic does not exist.
    """
    return _offsets(config, topic, KafkaConsumer.end_offsets)


def first_offsets(config: StreamConfig, topic: str) -> dict[int, int]:
    """The current offset of the first message of each partition.

    Raises:
        BrokerUnavailable: no broker answered within `stream.connect_timeout_s`.
        TopicMissing: the topic does not exist.
    """
    return _offsets(config, topic, KafkaConsumer.beginning_offsets)


def _offsets(
    config: StreamConfig,
    topic: str,
    ask: Callable[[KafkaConsumer, list[TopicPartition]], Mapping[TopicPartition, int]],
) -> dict[int, int]:
    with consumer_of(config) as consumer:
        return by_partition(
            ask(consumer, [TopicPartition(topic, p) for p in known_partitions(config, consumer, topic)])
        )


def open_consumer(config: StreamConfig, codecs: Counter[str] | None = None) -> KafkaConsumer:
    """A consumer outside any group that never creates topics and never resets a position on its own.

    Its fetches are bounded (`streaming.kafka.fetching`): a record's value may be `Unreadable`.

    Args:
        config: the stream.
        codecs: counts the fetched batches by what they are compressed with; default: nothing counts them.
    Raises:
        BrokerUnavailable: no broker answered within `stream.connect_timeout_s`.
    """
    arguments: dict[str, Any] = client_arguments(config) | {
        "group_id": None,
        "enable_auto_commit": False,
        "allow_auto_create_topics": False,
        "auto_offset_reset": "none",
        "isolation_level": "read_committed",
        "check_crcs": config.check_crcs,
        "metrics_enabled": False,
        "fetch_max_wait_ms": config.fetch_max_wait_ms,
        "fetch_max_bytes": config.fetch_max_bytes,
        "max_partition_fetch_bytes": config.max_message_bytes,
        "reconnect_backoff_max_ms": 1000,
    }
    accept_any_header_key()
    try:
        consumer = open_client(KafkaConsumer, **arguments)
    except KafkaError as error:
        raise unavailable(config, error) from error
    bound_fetches(consumer, config, codecs)
    return consumer


@contextmanager
def consumer_of(config: StreamConfig) -> Iterator[KafkaConsumer]:
    """A consumer for a few requests, closed at the end; a request that fails raises BrokerUnavailable."""
    consumer = open_consumer(config)
    try:
        yield consumer
    except KafkaError as error:
        raise unavailable(config, error) from error
    finally:
        consumer.close(autocommit=False, timeout_ms=1000)


def known_partitions(config: StreamConfig, consumer: KafkaConsumer, topic: str) -> list[int]:
    """Like `partitions_of`, with an open consumer."""
    partitions = consumer.partitions_for_topic(topic)
    if not partitions:
        raise TopicMissing(
            f"The topic {topic!r} does not exist at {config.bootstrap_servers}, or this user may not see it: create it,"
            f" or set {_setting_of(config, topic)} to the topic that has the events."
        )
    return sorted(partitions)


def topic_id(consumer: KafkaConsumer, topic: str, *, ask: bool = False) -> str:
    """Kafka's id of a topic (KIP-516), as Kafka's tools write it; it changes if the topic is deleted and recreated.

    Args:
        consumer: its last metadata has the id.
        topic: one that it reads.
        ask: ask a broker now.
    Returns:
        The id; empty if the topic does not exist, or the broker has no ids (before Kafka 2.8).
    Raises:
        KafkaError: no broker answered.
    """
    if ask:
        consumer._manager.run(consumer._cluster.refresh_metadata)
    found = consumer._cluster.topic_id(topic)
    return base64.urlsafe_b64encode(found.bytes).decode().rstrip("=") if found and found.int else ""


def current_topic_id(config: StreamConfig, topic: str) -> str:
    """The current id of a topic; see `topic_id`.

    Raises:
        BrokerUnavailable: no broker answered within `stream.connect_timeout_s`.
        TopicMissing: the topic does not exist.
    """
    with consumer_of(config) as consumer:
        known_partitions(config, consumer, topic)
        return topic_id(consumer, topic)


def seek(
    consumer: KafkaConsumer,
    start: Mapping[TopicPartition, int | None],
    lost: LostPosition = "fail",
    anew: Collection[TopicPartition] = (),
) -> tuple[dict[TopicPartition, int], set[TopicPartition]]:
    """Sets the positions of assigned partitions (None: the beginning).

    Args:
        consumer: has the partitions assigned.
        start: by partition.
        lost: where to continue if the log does not hold an offset: `stream.lost_position`.
        anew: partitions whose offsets are of an earlier topic of the same name.
    Returns:
        The offsets, and which partitions have other offsets than requested because the log does not hold those.
    Raises:
        PositionLost: an offset is before the beginning or after the end of its partition, and `lost` is "fail".
    """
    partitions = list(start)
    first, end = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
    offsets: dict[TopicPartition, int] = {}
    elsewhere: set[TopicPartition] = set()
    for at, offset in start.items():
        offsets[at] = first[at] if offset is None else offset
        if at in anew or not first[at] <= offsets[at] <= end[at]:
            offsets[at] = _instead(at, offsets[at], first[at], end[at], lost, is_anew=at in anew)
            elsewhere.add(at)
        consumer.seek(at, offsets[at])
    return offsets, elsewhere


def _instead(
    at: TopicPartition, offset: int, first: int, end: int, lost: LostPosition, *, is_anew: bool
) -> int:
    """The offset at which to continue, with a warning."""
    what = f"{at.topic} partition {at.partition} holds offsets {first} to {end}, but reading should resume at {offset}"
    if is_anew:
        what += " of an earlier topic of this name: the topic was deleted and recreated"
    else:
        what += ": the log was trimmed or the topic was recreated"
    if lost == "fail":
        raise PositionLost(
            f"{what}. Set stream.lost_position: earliest resumes at {first} and latest at {end}; messages "
            "in between are counted as skipped. Or keep the log longer (retention.ms), or use an empty storage_path."
        )
    chosen = first if lost == "earliest" else end
    _log.error("%s; resuming at %d (stream.lost_position=%s)", what, chosen, lost)
    return chosen


def release_parked(consumer: KafkaConsumer) -> None:
    """Clears a drained fetch; must be called before a poll that follows a resume.

    kafka-python 3.0.12 sets aside the parsed records of a paused partition and uses them again only if
    `_next_partition_records` is None, but leaves a drained object there. Without this call the partition is never read
    again (tests/integration/streaming/test_source.py reproduces it). There is no public alternative.
    """
    fetcher = getattr(consumer, "_fetcher", None)
    if fetcher is not None and not getattr(fetcher, "_next_partition_records", True):
        fetcher._next_partition_records = None


def by_partition(offsets: Mapping[TopicPartition, int]) -> dict[int, int]:
    """Offsets by partition number."""
    return {at.partition: offset for at, offset in sorted(offsets.items())}


def _setting_of(config: StreamConfig, topic: str) -> str:
    names = ("interactions_topic", "items_topic", "users_topic", "dead_letter_topic")
    return next((f"stream.{name}" for name in names if getattr(config, name) == topic), "its name")
