"""Identifies topics by their ids: a topic that is deleted and recreated under its name is another one (KIP-516)."""

import math
import time

from kafka import KafkaConsumer
from kafka.errors import KafkaError

from streaming.kafka.consumer import topic_id
from streaming.kafka.fetching_by_id import fetch_only


class TopicIdentity:
    """Detects that the topic that a consumer reads was recreated.

    The consumer fetches by id (`fetch_only`), so it never continues at its offset in a newer topic of the same name. If
    the topic is gone, the next fetch fails, the consumer asks the brokers again, and `renewed` sees the new id. For
    consumers that fetch by name, a broker is also asked from time to time and after an interruption.

    Args:
        consumer: has the topic's partitions assigned.
        topic: its name.
        every_s: interval at which a broker is asked.

    Attributes:
        current: the id of the topic that is read, set by the caller; empty if brokers have no ids.

    Raises:
        KafkaError: no broker answered.
    """

    def __init__(self, consumer: KafkaConsumer, topic: str, every_s: float) -> None:
        self._consumer, self._topic, self._every_s = consumer, topic, every_s
        self.current = topic_id(consumer, topic, ask=True)
        self._asked_s = time.monotonic()

    @property
    def current(self) -> str:
        """See the class."""
        return self._current

    @current.setter
    def current(self, topic_id: str) -> None:
        self._current = topic_id
        fetch_only(self._consumer, self._topic, topic_id)

    def doubt(self) -> None:
        """Make the next `renewed` ask a broker."""
        self._asked_s = -math.inf

    def renewed(self) -> str:
        """The id of the topic that has the name now, if it is another one; empty if it is the same or unknown.

        Raises:
            KafkaError: a permanent one.
        """
        now = time.monotonic()
        ask = now - self._asked_s >= self._every_s
        try:
            found = topic_id(self._consumer, self._topic, ask=ask)
        except KafkaError as error:
            if not error.retriable:
                raise
            return ""
        if ask:
            self._asked_s = now
        if not self.current and found:
            self.current = found
        return found if found != self.current else ""
