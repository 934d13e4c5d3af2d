import pytest
from kafka import KafkaAdminClient

from streaming.config import StreamConfig
from streaming.kafka.topics import (
    BrokerUnavailable,
    TopicError,
    admin_client,
    create_topics,
    delete_topics,
    partition_counts,
)


def topic_settings(config: StreamConfig, name: str) -> dict[str, str]:
    from kafka.admin import ConfigResource

    with KafkaAdminClient(bootstrap_servers=config.bootstrap_servers) as admin:
        return admin.describe_configs([ConfigResource("TOPIC", name)])


def counts(config: StreamConfig) -> dict[str, int]:
    names = (config.interactions_topic, config.items_topic, config.users_topic, config.dead_letters)
    with admin_client(config) as admin:
        return partition_counts(admin, names)


def test_creating_topics_twice_leaves_them_as_they_are(stream_factory):
    config = stream_factory(partitions=3)
    create_topics(config, partitions=3)
    assert counts(config) == {
        config.interactions_topic: 3,
        config.items_topic: 1,
        config.users_topic: 1,
        config.dead_letters: 1,
    }


def test_interactions_carry_the_append_time_and_catalogues_are_compacted(stream_config):
    assert "LogAppendTime" in str(topic_settings(stream_config, stream_config.interactions_topic))
    assert "compact" in str(topic_settings(stream_config, stream_config.items_topic))


def test_another_partition_count_is_refused_with_the_setting_to_change(stream_factory):
    config = stream_factory(partitions=2)
    with pytest.raises(TopicError, match=r"exists with 2 partitions, not 5: .*stream\.interactions_topic"):
        create_topics(config, partitions=5)


def test_deleted_topics_are_gone(stream_config):
    delete_topics(stream_config)
    assert counts(stream_config) == {}


def test_a_missing_broker_is_named_with_its_setting():
    config = StreamConfig(bootstrap_servers="127.0.0.1:1", connect_timeout_s=0.5)
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1 within 0\.5 s .*stream\.bootstrap_servers"):
        create_topics(config)
