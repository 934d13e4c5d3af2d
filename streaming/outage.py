"""Brokers that are away: said once when it begins and once when it is over, and not waited for for ever."""

import logging
import time
from collections.abc import Callable

from kafka.errors import KafkaError

from streaming.config import StreamConfig
from streaming.topics import BrokerUnavailable

_log = logging.getLogger(__name__)


class Outage:
    """Keeps the time since the brokers were last heard of."""

    def __init__(self, config: StreamConfig) -> None:
        self._config = config
        self._heard_s = time.monotonic()
        self._is_away = False

    @property
    def silent_s(self) -> float:
        """Seconds since they were last heard of."""
        return time.monotonic() - self._heard_s

    def answered(self) -> None:
        """They were heard of now."""
        if self._is_away:
            _log.warning(
                "the brokers at %s are back after %.0f s", self._config.bootstrap_servers, self.silent_s
            )
        self._heard_s, self._is_away = time.monotonic(), False

    def probe(self, ask: Callable[[], object]) -> None:
        """Asks them something.

        Raises:
            BrokerUnavailable: they have been away for longer than `stream.broker_patience_s`.
        """
        try:
            ask()
        except KafkaError as error:
            self._say(error)
        else:
            self.answered()

    def _say(self, error: KafkaError) -> None:
        where, patience_s = self._config.bootstrap_servers, self._config.broker_patience_s
        if self.silent_s > patience_s:
            raise BrokerUnavailable(
                f"No Kafka broker has answered at {where} for {self.silent_s:.0f} s ({type(error).__name__}): start "
                "one, set stream.bootstrap_servers, or raise stream.broker_patience_s to wait longer."
            ) from error
        if not self._is_away:
            _log.warning(
                "no broker answers at %s (%s): waiting for up to %g s (stream.broker_patience_s)",
                where,
                type(error).__name__,
                patience_s,
            )
        self._is_away = True
