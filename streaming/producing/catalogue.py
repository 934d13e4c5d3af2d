"""Publishes items and users on their compacted topics."""

from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from streaming.config import StreamConfig
from streaming.events.partitioner import partition_of_texts
from streaming.events.schema import ATTRIBUTES, ITEM_ID, USER_ID
from streaming.kafka.consumer import partitions_of
from streaming.kafka.delivery import Delivery, Pending


class CatalogueCounts(NamedTuple):
    """Number of items and users that were published and acknowledged."""

    items: int
    users: int


def publish_catalogue(
    config: StreamConfig, items: pa.Table | None, users: pa.Table | None
) -> CatalogueCounts:
    """Publishes items and users on their compacted topics, and waits for the acknowledgements.

    Args:
        config: the cluster and its topics.
        items: `item_id` and any of `title` (string) and `categories` (list of strings).
        users: `user_id` and one column per attribute; nulls are left out.
    Raises:
        BrokerUnavailable: no broker answers.
        TopicMissing: a topic does not exist.
        DeliveryError: a message was not acknowledged.
    """
    of_items = item_documents(items) if items is not None else []
    of_users = user_documents(users) if users is not None else []
    return CatalogueCounts(
        _publish(config, config.items_topic, ITEM_ID, of_items),
        _publish(config, config.users_topic, USER_ID, of_users),
    )


def item_documents(items: pa.Table) -> list[dict[str, Any]]:
    """Rows of items as values of the items topic."""
    return [{name: value for name, value in item.items() if value is not None} for item in items.to_pylist()]


def user_documents(users: pa.Table) -> list[dict[str, Any]]:
    """Rows of users as values of the users topic: every column but the id is an attribute."""
    documents = []
    for user in users.to_pylist():
        user_id = user.pop(USER_ID)
        attributes = {name: str(value) for name, value in user.items() if value is not None}
        documents.append({USER_ID: user_id, ATTRIBUTES: attributes})
    return documents


def _publish(config: StreamConfig, topic: str, id_name: str, documents: list[dict[str, Any]]) -> int:
    partitions = len(partitions_of(config, topic))
    texts = [str(document[id_name]) for document in documents]
    partition_N = partition_of_texts(pa.array(texts, pa.string()), partitions).tolist()
    delivery = Delivery(config, topic, partitions)
    try:
        for partition, text, document in zip(partition_N, texts, documents, strict=True):
            delivery.send(partition, Pending(text.encode(), orjson.dumps(document), [], 1))
        delivery.flush()
        return delivery.rows_acknowledged
    finally:
        delivery.abandon()
