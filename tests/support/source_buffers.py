"""The amount that a Kafka source holds in memory."""

from streaming.sources.kafka_source import KafkaSource


def buffered(source: KafkaSource) -> dict[int, tuple[int, int]]:
    """Rows that wait to be taken, and bytes of their messages and of those not decoded yet, by partition."""
    with source._changed:
        return {
            p: (reader.queue.ready, reader.queue.size + reader.waiting_bytes)
            for p, reader in source._readers.items()
        }
