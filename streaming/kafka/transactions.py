"""Producers whose messages are readable together or not at all."""

from kafka import KafkaProducer
from kafka.errors import KafkaError

from streaming.config import StreamConfig, client_arguments
from streaming.kafka.consumer import unavailable


def transactional_producer(
    config: StreamConfig, transactional_id: str, *, timeout_ms: int, linger_ms: int = 0
) -> KafkaProducer:
    """A producer that fences earlier ones of the same id once `init_transactions` is called.

    Args:
        config: the stream.
        transactional_id: of the work that must be done by one at a time.
        timeout_ms: after which the broker gives up an open transaction.
        linger_ms: time to wait for more messages of a batch.
    Raises:
        BrokerUnavailable: no broker answered.
    """
    patience_ms = int(config.request_timeout_s * 1000)
    try:
        return KafkaProducer(
            **client_arguments(config),
            transactional_id=transactional_id,
            transaction_timeout_ms=timeout_ms,
            acks="all",
            compression_type="lz4",
            allow_auto_create_topics=False,
            max_request_size=config.max_message_bytes,
            max_block_ms=patience_ms,
            delivery_timeout_ms=patience_ms + 1000,
            linger_ms=linger_ms,
        )
    except KafkaError as error:
        raise unavailable(config, error) from error
