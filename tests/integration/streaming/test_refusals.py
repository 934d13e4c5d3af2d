"""A permanent refusal by a broker ends a run with one line: for events, letters and the catalogue, at any time."""

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType

from streaming.catalogue.reader import CatalogueReader
from streaming.config import StreamConfig
from streaming.dead_letters.writer import DeadLettersDelayed, DeadLettersLost, DeadLetterWriter
from streaming.events.dead_letter import DeadLetter
from streaming.events.position import Position
from streaming.kafka.delivery import DeliveryError
from streaming.kafka.group_offsets import publish_group_offsets
from streaming.kafka.topics import create_topics
from streaming.local_broker.broker import LocalBroker
from streaming.sources.kafka_source import BrokerRefused, KafkaSource, TopicMissing, partitions_of
from tests.support.worker_runs import events, produce

PROPERTIES = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}


def _rule(stream, kind, name, operation, permission=ACLPermissionType.DENY):
    with KafkaAdminClient(bootstrap_servers=stream.bootstrap_servers) as admin:
        admin.create_acls([ACL("User:ANONYMOUS", "*", operation, permission, ResourcePattern(kind, name))])


def _poll_often(reader):
    """The brokers learn of a denial a moment after it was made."""
    for _ in range(60):
        reader.poll(timeout_ms=500)


def test_what_a_user_may_not_do_is_one_line_wherever_it_is_refused(tmp_path):
    with LocalBroker(tmp_path / "kafka", properties=PROPERTIES) as broker:
        stream = StreamConfig(bootstrap_servers=broker.bootstrap_servers, request_timeout_s=10.0)
        create_topics(stream, partitions=1)
        # Where there is any rule, only what one allows is allowed.
        for topic in (stream.interactions_topic, stream.items_topic, stream.dead_letters):
            _rule(stream, ResourceType.TOPIC, topic, ACLOperation.ALL, ACLPermissionType.ALLOW)
        produce(stream, events(20))
        with KafkaSource(stream, [0], {}) as source, CatalogueReader(stream) as reader:
            assert source.wait_full(20, 20)
            for topic in (stream.interactions_topic, stream.items_topic):
                _rule(stream, ResourceType.TOPIC, topic, ACLOperation.READ)
            refusal = r"refuses permanently: .*TopicAuthorizationFailed.*kafka-acls"
            with pytest.raises(BrokerRefused, match=refusal):
                source.wait_full(1000, 30)
            with pytest.raises(BrokerRefused, match=refusal):
                _poll_often(reader)
        _rule(stream, ResourceType.GROUP, stream.consumer_group, ACLOperation.ALL)
        with pytest.raises(BrokerRefused, match="GroupAuthorizationFailed"):
            publish_group_offsets(stream, {0: Position(3, 0)})
        _rule(stream, ResourceType.TOPIC, stream.interactions_topic, ACLOperation.WRITE)
        with pytest.raises(DeliveryError, match="TopicAuthorizationFailed"):
            produce(stream, events(1))
        _rule(stream, ResourceType.TOPIC, stream.dead_letters, ACLOperation.WRITE)
        writer = DeadLetterWriter(stream)
        writer.send([DeadLetter("broken", stream.interactions_topic, 0, 0, 0, b"x")])
        with pytest.raises(DeadLettersLost, match="TopicAuthorizationFailed") as lost:
            writer.flush()
        assert not isinstance(lost.value, DeadLettersDelayed)
        writer.close()
        _rule(stream, ResourceType.TOPIC, stream.interactions_topic, ACLOperation.DESCRIBE)
        with pytest.raises(TopicMissing, match="or this user may not see it"):
            partitions_of(stream, stream.interactions_topic)
