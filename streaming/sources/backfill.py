"""The range of a topic that a run reads: between two times, by the brokers' clock or by event time."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kafka import KafkaConsumer, TopicPartition

from streaming.config import StreamConfig
from streaming.kafka.consumer import by_partition, consumer_of, known_partitions


@dataclass(frozen=True)
class TopicRange:
    """Where to begin, and where to end (exclusive), by partition; a run that continues live has no ends."""

    start: Mapping[int, int]
    end: Mapping[int, int] | None


def topic_range(config: StreamConfig, *, bounded: bool) -> TopicRange:
    """The current offsets of `stream.from_time` and `stream.until_time`.

    By event time, rows that are too early or too late are ignored one by one. A message appended more than
    `stream.max_future_s` before `from_time` can only have rows that are too early.

    Raises:
        BrokerUnavailable: no broker answered.
        TopicMissing: the topic does not exist.
    """
    by_event = config.time_axis == "event"
    with consumer_of(config) as consumer:
        topic = config.interactions_topic
        places = [TopicPartition(topic, p) for p in known_partitions(config, consumer, topic)]
        ends = consumer.end_offsets(places)
        start = consumer.beginning_offsets(places)
        from_ms = config.from_ms - int(config.max_future_s * 1000) * by_event
        if config.from_ms and from_ms > 0 and (not by_event or config.max_future_s):
            start = _offsets_at(consumer, places, from_ms, ends)
        if config.until_ms and not by_event:
            until = _offsets_at(consumer, places, config.until_ms, ends)
            ends = {at: max(start[at], until[at]) for at in places}
    return TopicRange(by_partition(start), by_partition(ends) if bounded else None)


def _offsets_at(
    consumer: KafkaConsumer,
    places: Iterable[TopicPartition],
    time_ms: int,
    ends: Mapping[TopicPartition, int],
) -> dict[TopicPartition, int]:
    """The first message of each partition at or after a time, or the partition's end if there is none yet."""
    found = consumer.offsets_for_times(dict.fromkeys(places, time_ms))
    return {at: found[at].offset if found.get(at) is not None else ends[at] for at in places}
