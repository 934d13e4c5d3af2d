"""Replays a data set as a live stream.

Shapes: N events of one batch.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from streaming.config import StreamConfig
from streaming.events.schema import EVENT_SCHEMA, TIMESTAMP_MS
from streaming.events.times import times_in_ms
from streaming.producing.producer import EventProducer, Wire

ROWS_AT_FULL_SPEED = 8192


class EventData(Protocol):
    """The part of a data set that `replay` needs; `deploy.datasets.datasets.Dataset` has it."""

    @property
    def interactions(self) -> pa.Table:
        """Events: `user_id`, `item_id`, `timestamp_ms`, and optional columns of EVENT_SCHEMA; others are left out."""


@dataclass(frozen=True)
class ReplayResult:
    """What a replay did.

    Attributes:
        events: events acknowledged by the brokers.
        messages: Kafka messages that carried them.
        partitions: partitions of the topic.
        seconds: wall time.
        reopened: how often the producer was replaced because the brokers were unreachable.
    """

    events: int
    messages: int
    partitions: int
    seconds: float
    reopened: int


def replay(
    config: StreamConfig,
    dataset: EventData,
    *,
    rate_events_per_s: float = 0.0,
    duration_s: float = 0.0,
    wire: Wire = "arrow",
    linger_ms: int = 200,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    stop: threading.Event | None = None,
) -> ReplayResult:
    """Sends a data set as a live stream: in time order, at a steady rate, each event once.

    Events of the same time are sent in an order drawn from `seed`. Event times are those of the data set.

    Args:
        config: the cluster and its topics.
        dataset: its `interactions` are sent.
        rate_events_per_s: 0 means as fast as possible.
        duration_s: chooses the rate so that the replay takes this long; not together with a rate.
        wire: "arrow" or "json".
        linger_ms: how long events are gathered before they are sent; events of one flush share messages.
        seed: draws the order of events of the same time.
        progress: called regularly with the number of events acknowledged so far.
        stop: set it to end early; events already sent are still acknowledged.
    Raises:
        BrokerUnavailable: no broker answers.
        TopicMissing: the topic does not exist.
        DeliveryError: the brokers stayed away for too long, so events are missing; names the topic.
    """
    if rate_events_per_s < 0 or duration_s < 0 or (rate_events_per_s and duration_s):
        raise ValueError(
            "Give either rate_events_per_s or duration_s, not negative, "
            f"got {rate_events_per_s} and {duration_s}"
        )
    events = in_time_order(dataset.interactions, seed)
    rate = events.num_rows / duration_s if duration_s else rate_events_per_s
    started = time.monotonic()
    with EventProducer(config, wire=wire) as producer:
        for batch in _paced(events, rate, linger_ms / 1000, stop or threading.Event()):
            producer.send(batch)
            producer.settle()
            if progress:
                progress(producer.acknowledged)
        producer.flush()
        if progress:
            progress(producer.acknowledged)
    seconds = time.monotonic() - started
    return ReplayResult(
        producer.acknowledged, producer.messages, producer.partitions, seconds, producer.reopened
    )


def in_time_order(interactions: pa.Table, seed: int) -> pa.RecordBatch:
    """The events as one batch with the columns of EVENT_SCHEMA that exist, ties in seeded order."""
    names = [name for name in EVENT_SCHEMA.names if name in interactions.column_names]
    table = interactions.select(names).combine_chunks()
    times = times_in_ms(table[TIMESTAMP_MS], TIMESTAMP_MS)
    if times.null_count:
        raise ValueError(
            f"{times.null_count} of {table.num_rows} events have no {TIMESTAMP_MS}, which determines the order"
        )
    table = table.set_column(table.column_names.index(TIMESTAMP_MS), TIMESTAMP_MS, times)
    time_N = times.to_numpy()
    tie_N = np.random.default_rng(seed).random(len(time_N))
    ordered = table.take(pa.array(np.lexsort((tie_N, time_N)))).combine_chunks().to_batches()
    return ordered[0] if ordered else pa.RecordBatch.from_pylist([], schema=table.schema)


def _paced(
    events: pa.RecordBatch, rate: float, linger_s: float, stop: threading.Event
) -> Iterator[pa.RecordBatch]:
    sent, started = 0, time.monotonic()
    while sent < events.num_rows and not stop.is_set():
        due = int((time.monotonic() - started) * rate) if rate else sent + ROWS_AT_FULL_SPEED
        count = min(due, events.num_rows) - sent
        if count > 0:
            yield events.slice(sent, count)
            sent += count
        if rate:
            stop.wait(linger_s)
