"""Reports our positions to Kafka after each checkpoint, so that ordinary lag tools see them.

A reader never resumes from these offsets, only from the checkpoint, and no consumer joins the group.
"""

import logging
import threading
import time
from collections.abc import Mapping

from kafka import TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from streaming.config import StreamConfig
from streaming.events.position import Position
from streaming.kafka.consumer import unavailable
from streaming.kafka.topics import BrokerRefused, BrokerUnavailable, admin_client

_RETRY_S = 0.5
_log = logging.getLogger(__name__)


def publish_group_offsets(config: StreamConfig, positions: Mapping[int, Position]) -> None:
    """Set the offsets of `stream.consumer_group` for the interactions topic.

    A position inside a message counts the message as unread. For a cluster's first group, the broker creates its
    internal topic and has no coordinator until then; this waits for it.

    Raises:
        BrokerUnavailable: not done within `stream.connect_timeout_s`.
        BrokerRefused: the brokers refused.
    """
    offsets = {
        TopicPartition(config.interactions_topic, partition): OffsetAndMetadata(at.offset, "", -1)
        for partition, at in positions.items()
    }
    deadline = time.monotonic() + config.connect_timeout_s
    with admin_client(config) as admin:
        while True:
            try:
                admin.alter_group_offsets(config.consumer_group, offsets)
                return
            except KafkaError as error:
                if not error.retriable or time.monotonic() > deadline:
                    raise unavailable(config, error) from error
                time.sleep(_RETRY_S)


class GroupOffsets:
    """Reports offsets from a thread, so that a slow or unreachable broker never delays training."""

    def __init__(self, config: StreamConfig) -> None:
        self._config = config
        self._thread: threading.Thread | None = None

    def tell(self, positions: Mapping[int, Position]) -> None:
        """Start a report, unless the last one is still running; the next checkpoint reports more anyway."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._tell, args=(dict(positions),), daemon=True)
            self._thread.start()

    def close(self, wait_s: float | None = None) -> None:
        """Wait for a running report, by default up to `stream.connect_timeout_s`."""
        if self._thread is not None:
            self._thread.join(self._config.connect_timeout_s if wait_s is None else wait_s)

    def _tell(self, positions: Mapping[int, Position]) -> None:
        try:
            publish_group_offsets(self._config, positions)
        except (BrokerUnavailable, BrokerRefused) as error:
            _log.warning("lag tools see old offsets of group %s: %s", self._config.consumer_group, error)
