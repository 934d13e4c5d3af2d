"""Waits for unreachable brokers up to a limit, and logs the beginning and the end of an outage."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from kafka.errors import KafkaError

from streaming.config import StreamConfig
from streaming.kafka.topics import BrokerUnavailable, is_permanent, refused

_log = logging.getLogger(__name__)


_RETRY_S = 0.5
_SAY_AGAIN_S = 60.0
_Answer = TypeVar("_Answer")


def patiently(config: StreamConfig, ask: Callable[[], _Answer]) -> _Answer:
    """The answer of a request to brokers, waiting up to `stream.broker_patience_s` for unreachable ones.

    Raises:
        BrokerUnavailable: they were unreachable for longer.
    """
    outage = Outage(config)
    while True:
        try:
            answer = ask()
        except BrokerUnavailable as error:
            if outage.silent_s > config.broker_patience_s:
                raise
            outage.missed(str(error).rstrip("."))
            time.sleep(_RETRY_S)
        else:
            outage.answered()
            return answer


class Outage:
    """Keeps the time since a broker last answered."""

    def __init__(self, config: StreamConfig) -> None:
        self._config = config
        self._heard_s = time.monotonic()
        self._said_s: float | None = None

    @property
    def silent_s(self) -> float:
        """Seconds since a broker last answered."""
        return time.monotonic() - self._heard_s

    def answered(self) -> None:
        """Record that a broker answered."""
        if self._said_s is not None:
            _log.warning(
                "the brokers at %s are back after %.0f s", self._config.bootstrap_servers, self.silent_s
            )
        self._heard_s, self._said_s = time.monotonic(), None

    def probe(self, ask: Callable[[], object]) -> None:
        """Sends a request to the brokers.

        Raises:
            BrokerUnavailable: they have been unreachable for longer than `stream.broker_patience_s`.
            BrokerRefused: they refused permanently.
        """
        try:
            ask()
        except KafkaError as error:
            if is_permanent(error):
                raise refused(self._config, error) from error
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
        self.missed(f"no broker answers at {where} ({type(error).__name__})")

    def missed(self, what: str) -> None:
        """Record that no broker answered; logged at once, and again each minute."""
        now, patience_s = time.monotonic(), self._config.broker_patience_s
        if self._said_s is None:
            _log.warning("%s; waiting for up to %g s (stream.broker_patience_s)", what, patience_s)
        elif now - self._said_s >= _SAY_AGAIN_S:
            _log.warning("no broker yet at %s after %.0f s", self._config.bootstrap_servers, self.silent_s)
        else:
            return
        self._said_s = now
