"""Opens Kafka clients so that one that reaches no broker leaves nothing running."""

from collections.abc import Callable
from typing import Any, TypeVar

from kafka.net.compat import KafkaNetClient

_Client = TypeVar("_Client")


def open_client(kind: Callable[..., _Client], **arguments: Any) -> _Client:
    """A `KafkaConsumer` or `KafkaAdminClient`.

    Their constructors start a thread with sockets before they connect, and do not end it if no broker answers: it would
    try to connect for as long as the process lives.

    Raises:
        kafka.errors.KafkaError: no broker answered, or one refused.
    """
    started: list[KafkaNetClient] = []

    def connections(**configuration: Any) -> KafkaNetClient:
        started.append(KafkaNetClient(**configuration))
        return started[-1]

    try:
        return kind(**arguments, kafka_client=connections)
    except BaseException:
        for client in started:
            client.close()
        raise
