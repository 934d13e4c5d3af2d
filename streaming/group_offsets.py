"""Our positions, told to Kafka after each checkpoint, so that ordinary lag tools see them.

The checkpoint is what counts: a reader never resumes from these offsets, and nobody joins the group.
"""

from collections.abc import Mapping

from kafka import TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from streaming.config import StreamConfig
from streaming.consumer import unavailable
from streaming.position import Position
from streaming.topics import admin_client


def publish_group_offsets(config: StreamConfig, positions: Mapping[int, Position]) -> None:
    """Set the offsets of `stream.consumer_group` for the interactions topic.

    A position inside a message counts as that message unread.

    Raises:
        BrokerUnavailable: no broker answered within `stream.connect_timeout_s`.
    """
    offsets = {
        TopicPartition(config.interactions_topic, partition): OffsetAndMetadata(at.offset, "", -1)
        for partition, at in positions.items()
    }
    try:
        with admin_client(config) as admin:
            admin.alter_group_offsets(config.consumer_group, offsets)
    except KafkaError as error:
        raise unavailable(config, error) from error
