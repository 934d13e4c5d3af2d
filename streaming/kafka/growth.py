"""Notices from a thread that a topic gains partitions, and reports it once every producer had time to notice too."""

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from streaming.config import StreamConfig
from streaming.kafka.consumer import TopicMissing, end_offsets
from streaming.kafka.topics import BrokerRefused, BrokerUnavailable, partition_count

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Growth:
    """The new number of partitions, and the offsets to which the earlier ones are read before the new ones."""

    partitions: int
    ends: Mapping[int, int]


class TopicWatch:
    """Checks every `stream.metadata_every_s` how many partitions the interactions topic has.

    Args:
        config: the stream.
        known: number of partitions that are read.
    """

    def __init__(self, config: StreamConfig, known: int) -> None:
        self.found: Growth | None = None
        """Set once, `stream.growth_wait_s` after more partitions than known were seen."""
        self._config, self._known = config, known
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="freshet-topic-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; harmless if repeated."""
        self._stop.set()
        self._thread.join(self._config.connect_timeout_s)

    def _run(self) -> None:
        stream = self._config
        while not self._stop.wait(stream.metadata_every_s):
            try:
                if partition_count(stream, stream.interactions_topic) <= self._known:
                    continue
                _log.warning(
                    "%s has gained partitions: they are read in %g s (stream.growth_wait_s), after the others",
                    stream.interactions_topic,
                    stream.growth_wait_s,
                )
                if self._stop.wait(stream.growth_wait_s):
                    return
                ends = end_offsets(stream, stream.interactions_topic)
            except (BrokerUnavailable, BrokerRefused, TopicMissing):
                continue  # the reader reports it
            self.found = Growth(len(ends), {p: ends[p] for p in range(self._known)})
            return
