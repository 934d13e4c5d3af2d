"""Fetches a topic by its id (KIP-516), so that a broker never answers for a newer topic of the same name.

kafka-python fetches by name, with up to version 12 of the request; version 13 (brokers since Kafka 3.1) uses ids
instead of names. Everything that depends on kafka-python's internals is here. Older brokers are asked by name.
"""

import base64
from typing import Any
from uuid import UUID

from kafka import KafkaConsumer

_BY_ID = 13


def fetch_only(consumer: KafkaConsumer, topic: str, topic_id: str) -> None:
    """Make a consumer accept only records of the topic with this id; earlier fetches are dropped.

    If another topic has the name, the fetch fails with a retriable error, and the consumer renews its metadata.

    Args:
        consumer: has partitions assigned.
        topic: one that it reads.
        topic_id: from `streaming.kafka.consumer.topic_id`; empty: any topic of this name.
    """
    fetcher = consumer._fetcher
    by_id = getattr(fetcher, "by_id", None)
    if by_id is None:
        by_id = fetcher.by_id = _ById(fetcher)
    by_id.pin(topic, topic_id)


class _ById:
    def __init__(self, fetcher: Any) -> None:
        self._fetcher = fetcher
        self._ids: dict[str, UUID] = {}
        self._create, self._handle = fetcher._create_fetch_requests, fetcher._handle_fetch_response
        fetcher._create_fetch_requests, fetcher._handle_fetch_response = self._requests, self._response

    def pin(self, topic: str, topic_id: str) -> None:
        if topic_id:
            self._ids[topic] = UUID(bytes=base64.urlsafe_b64decode(topic_id + "=="))
        else:
            self._ids.pop(topic, None)
        fetcher = self._fetcher
        fetcher._session_handlers.clear()  # a fetch session keeps the ids that it began with
        fetcher._completed_fetches = type(fetcher._completed_fetches)(
            fetch for fetch in fetcher._completed_fetches if fetch.topic_partition.topic != topic
        )
        for parked in (fetcher._paused_completed_fetches, fetcher._paused_partition_records):
            for at in [at for at in parked if at.topic == topic]:
                del parked[at]
        current = fetcher._next_partition_records
        if current and current.topic_partition.topic == topic:
            fetcher._next_partition_records = None

    def _requests(self) -> Any:
        requests = self._create()
        if {at.topic for at in self._fetcher._subscriptions.assignment} <= self._ids.keys():
            for request, _ in requests.values():
                request._max_version = _BY_ID
                for entry in (*request.topics, *request.forgotten_topics_data):
                    entry.topic_id = self._ids[entry.topic]
        return requests

    def _response(self, node_id: Any, fetch_offsets: Any, send_time: float, response: Any) -> None:
        if response.API_VERSION >= _BY_ID:
            names = {topic_id: topic for topic, topic_id in self._ids.items()}
            # Without a name: the answer to a request from before the topic was recreated.
            response.responses = [data for data in response.responses if data.topic_id in names]
            for data in response.responses:
                data.topic = names[data.topic_id]
        self._handle(node_id, fetch_offsets, send_time, response)
