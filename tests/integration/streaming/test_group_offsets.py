"""Lag tools see the positions of the last checkpoint."""

from kafka import KafkaAdminClient

from streaming.events.position import Position
from streaming.kafka.group_offsets import GroupOffsets


def test_the_groups_offsets_are_those_of_the_positions(stream_factory):
    stream = stream_factory(2, consumer_group="lag-of-a-test")
    offsets = GroupOffsets(stream)
    offsets.tell({0: Position(7, 3), 1: Position(2, 0)})
    offsets.close()
    admin = KafkaAdminClient(bootstrap_servers=stream.bootstrap_servers)
    try:
        listed = admin.list_group_offsets(["lag-of-a-test"])
    finally:
        admin.close()
    found = {
        at.partition: o.offset for at, o in _flat(listed).items() if at.topic == stream.interactions_topic
    }
    assert found == {0: 7, 1: 2}


def _flat(listed):
    return listed.get("lag-of-a-test", listed)
