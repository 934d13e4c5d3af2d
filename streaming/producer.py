"""Events and catalogues into Kafka: columns in, one Arrow message per partition (or JSON per event) out.

Shapes: N events of one batch, P partitions.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
import orjson
import pyarrow as pa

from streaming.codec import ARROW, ENCODING_HEADER, JSON, encode_events
from streaming.config import StreamConfig
from streaming.consumer import partitions_of
from streaming.delivery import Delivery, Headers, Pending
from streaming.event_times import times_in_ms
from streaming.partitioner import Int32s, partition_of_texts, partition_of_users
from streaming.schema import ATTRIBUTES, EVENT_SCHEMA, ITEM_ID, TIMESTAMP_MS, USER_ID

Wire = Literal["arrow", "json"]
ROWS_PER_MESSAGE = 4096
ROWS_AT_FULL_SPEED = 8192


class EventProducer:
    """Sends events to the interactions topic; a context manager that flushes and closes at the end."""

    def __init__(
        self,
        config: StreamConfig,
        *,
        wire: Wire = "arrow",
        delivery_timeout_s: float = 30.0,
        reopen_timeout_s: float = 120.0,
    ) -> None:
        """Opens a producer.

        Args:
            config: the cluster and its topics.
            wire: "arrow" for one message per partition and `send`, "json" for one message per event.
            delivery_timeout_s: after this long without an acknowledgement the producer is replaced.
            reopen_timeout_s: how long to try that before giving up.
        Raises:
            BrokerUnavailable: no broker answers.
            TopicMissing: the interactions topic does not exist.
        """
        if wire not in ("arrow", "json"):
            raise ValueError(f"wire must be arrow or json, got {wire!r}")
        self.wire = wire
        self.partitions = len(partitions_of(config, config.interactions_topic))
        self._max_message_bytes = config.max_message_bytes
        self._delivery = Delivery(
            config,
            config.interactions_topic,
            self.partitions,
            delivery_timeout_s=delivery_timeout_s,
            reopen_timeout_s=reopen_timeout_s,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._delivery.abandon()

    @property
    def acknowledged(self) -> int:
        """Events that the brokers have acknowledged, as of the last `send`, `settle` or `flush`."""
        return self._delivery.rows_acknowledged

    @property
    def messages(self) -> int:
        """Messages that the brokers have acknowledged."""
        return self._delivery.messages_acknowledged

    @property
    def reopened(self) -> int:
        """How often the producer had to be replaced because the brokers were away."""
        return self._delivery.reopened

    def send(self, events: pa.RecordBatch) -> None:
        """Hands events over; their order within a user is kept. Returns before they are acknowledged.

        A topic that gains partitions is followed within some ten seconds.

        Args:
            events: EVENT_SCHEMA's columns (the optional ones may be absent); ids int64 or string.
        Raises:
            DeliveryError: the brokers stayed away for too long.
        """
        encode = _arrow_messages if self.wire == "arrow" else _json_messages
        self.partitions = self._delivery.follow_growth()
        for partition, rows in _by_partition(events, self.partitions):
            for message in encode(rows, self._max_message_bytes):
                self._delivery.send(partition, message)

    def settle(self) -> None:
        """Takes note of the acknowledgements that have come; does not wait for others."""
        self._delivery.settle()

    def flush(self) -> int:
        """Waits until every event has been acknowledged; returns how many were since the start.

        Raises:
            DeliveryError: the brokers stayed away for too long; names the topic.
        """
        self._delivery.flush()
        return self.acknowledged

    def close(self) -> None:
        """Flushes and closes."""
        self._delivery.flush()
        self._delivery.close()


def _by_partition(events: pa.RecordBatch, partitions: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    partition_N = _partition_of(events.column(USER_ID), partitions)
    # Stable, so that a user's events stay in order.
    ordered = events.take(pa.array(np.argsort(partition_N, kind="stable")))
    ends_P = np.cumsum(np.bincount(partition_N, minlength=partitions))
    start = 0
    for partition, end in enumerate(ends_P.tolist()):
        if end > start:
            yield partition, ordered.slice(start, end - start)
        start = end


def _partition_of(ids: pa.Array, partitions: int) -> Int32s:
    if pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
        return partition_of_texts(ids, partitions)
    return partition_of_users(ids.to_numpy(zero_copy_only=False), partitions)


def _arrow_messages(rows: pa.RecordBatch, max_bytes: int) -> Iterator[Pending]:
    headers = [(ENCODING_HEADER, ARROW)]
    for start in range(0, rows.num_rows, ROWS_PER_MESSAGE):
        piece = rows.slice(start, ROWS_PER_MESSAGE)
        value = encode_events(piece)
        # Half of the limit: what Kafka counts has a frame around it, and may not get smaller by compression.
        if len(value) > max_bytes // 2 and piece.num_rows > 1:
            middle = piece.num_rows // 2
            yield from _arrow_messages(piece.slice(0, middle), max_bytes)
            yield from _arrow_messages(piece.slice(middle), max_bytes)
        else:
            yield Pending(None, value, headers, piece.num_rows)


def _json_messages(rows: pa.RecordBatch, max_bytes: int) -> Iterator[Pending]:
    headers: Headers = [(ENCODING_HEADER, JSON)]
    for event in rows.to_pylist():
        value = orjson.dumps({name: field for name, field in event.items() if field is not None})
        yield Pending(str(event[USER_ID]).encode(), value, headers, 1)


class CatalogueCounts(NamedTuple):
    """How many items and users were published and acknowledged."""

    items: int
    users: int


def publish_catalogue(
    config: StreamConfig, items: pa.Table | None, users: pa.Table | None
) -> CatalogueCounts:
    """Publishes items and users on their compacted topics, and waits for the acknowledgements.

    Args:
        config: the cluster and its topics.
        items: `item_id` and any of `title` (string) and `categories` (list of strings).
        users: `user_id` and one column per attribute; nulls are left out.
    Raises:
        BrokerUnavailable: no broker answers.
        TopicMissing: a topic does not exist.
        DeliveryError: a message was not acknowledged.
    """
    of_items = item_documents(items) if items is not None else []
    of_users = user_documents(users) if users is not None else []
    return CatalogueCounts(
        _publish(config, config.items_topic, ITEM_ID, of_items),
        _publish(config, config.users_topic, USER_ID, of_users),
    )


def item_documents(items: pa.Table) -> list[dict[str, Any]]:
    """Rows of items as values of the items topic."""
    return [{name: value for name, value in item.items() if value is not None} for item in items.to_pylist()]


def user_documents(users: pa.Table) -> list[dict[str, Any]]:
    """Rows of users as values of the users topic: every column but the id is an attribute."""
    documents = []
    for user in users.to_pylist():
        user_id = user.pop(USER_ID)
        attributes = {name: str(value) for name, value in user.items() if value is not None}
        documents.append({USER_ID: user_id, ATTRIBUTES: attributes})
    return documents


def _publish(config: StreamConfig, topic: str, id_name: str, documents: list[dict[str, Any]]) -> int:
    partitions = len(partitions_of(config, topic))
    texts = [str(document[id_name]) for document in documents]
    partition_N = partition_of_texts(pa.array(texts, pa.string()), partitions).tolist()
    delivery = Delivery(config, topic, partitions)
    try:
        for partition, text, document in zip(partition_N, texts, documents, strict=True):
            delivery.send(partition, Pending(text.encode(), orjson.dumps(document), [], 1))
        delivery.flush()
        return delivery.rows_acknowledged
    finally:
        delivery.abandon()


class EventData(Protocol):
    """What `replay` needs of a data set: `deploy.datasets.Dataset` is one."""

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
        reopened: how often the producer had to be replaced because the brokers were away.
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

    Events of the same time come in an order drawn from `seed`. Event times stay those of the data set.

    Args:
        config: the cluster and its topics.
        dataset: its `interactions` are sent.
        rate_events_per_s: 0 means as fast as possible.
        duration_s: the rate is chosen so that the whole takes this long; not together with a rate.
        wire: "arrow" or "json".
        linger_ms: how long events are gathered before they are sent; events of one flush share messages.
        seed: draws the order of events of the same time.
        progress: called now and then with the number of events acknowledged so far.
        stop: set it to end early; what was sent is still acknowledged.
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
    """The events as one batch with the columns of EVENT_SCHEMA that are there, ties in seeded order."""
    names = [name for name in EVENT_SCHEMA.names if name in interactions.column_names]
    table = interactions.select(names).combine_chunks()
    times = times_in_ms(table[TIMESTAMP_MS], TIMESTAMP_MS)
    if times.null_count:
        raise ValueError(
            f"{times.null_count} of {table.num_rows} events have no {TIMESTAMP_MS}, by which they are sent in order"
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
