"""A topic is its id, not its name: one that is deleted and recreated under its name is another one (KIP-516)."""

import math
import time

from kafka import KafkaConsumer
from kafka.errors import KafkaError

from streaming.kafka.consumer import topic_id
from streaming.kafka.fetching_by_id import fetch_only


class TopicIdentity:
    """Whether the topic that a consumer reads is still the one that it was.

    The consumer fetches by the id (`fetch_only`), so it never goes on at its offset in what has the name by now. That
    the topic is gone is an error of the next fetch, which makes it ask the brokers again, and `renewed` sees the new
    id; besides, a broker is asked now and then and where fetching had been interrupted, for those that fetch by name.

    Args:
        consumer: has the topic's partitions assigned.
        topic: its name.
        every_s: how often a broker is asked.

    Attributes:
        current: the id that is read, as of the last time that the caller set it; empty where brokers give none.

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
        """The next `renewed` asks a broker."""
        self._asked_s = -math.inf

    def renewed(self) -> str:
        """The id of the topic that has the name now, if it is another one; else, or if nobody knows, empty.

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
