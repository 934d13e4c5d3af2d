"""A topic that is deleted and recreated under its name is another one, and is read from its beginning."""

import time
from dataclasses import replace

import pyarrow as pa
import pytest
import torch
from kafka import KafkaAdminClient

from cluster.audit.exactly_once import verify_exactly_once
from cluster.collectives import Collectives
from cluster.training.worker import Worker
from streaming.catalogue.reader import CatalogueReader
from streaming.dead_letters.replay import read_letters, replay_letters
from streaming.kafka.consumer import current_topic_id
from streaming.kafka.topics import create_topics
from streaming.producing.catalogue import publish_catalogue
from streaming.sources.kafka_source import KafkaSource, PositionLost, TopicMissing, end_offsets
from tests.support.ranks import run_on_ranks
from tests.support.worker_runs import START_MS, config_of, events, newest, produce, send_raw, train, users_of


def recreate(stream, topic, partitions=1):
    """Deletes a topic, waits until it is gone, and creates it under the same name."""
    before = current_topic_id(stream, topic)
    with KafkaAdminClient(bootstrap_servers=stream.bootstrap_servers) as admin:
        remove(admin, topic)
    create_topics(stream, partitions=partitions)
    assert before != current_topic_id(stream, topic) != ""


def remove(admin, topic):
    """Deletes a topic and waits until it is gone."""
    admin.delete_topics([topic])
    deadline = time.monotonic() + 20
    while not admin.describe_topics([topic])[0]["error_code"]:
        assert time.monotonic() < deadline, "the topic is not deleted"
        time.sleep(0.02)


def _bad(partition, partitions, n):
    user = users_of(partition, partitions)[0]
    return {"value": {"user_id": user, "timestamp_ms": START_MS + n}, "partition": partition}


@pytest.mark.parametrize("choice", ["earliest", "latest"])
def test_a_topic_created_anew_and_filled_past_the_position_is_a_lost_position(
    stream_factory, tmp_path, choice
):
    stream = stream_factory(2)
    produce(stream, events(200), rows_per_message=4)
    send_raw(stream, [_bad(0, 2, 1)])
    config = config_of(stream, tmp_path)
    train(0, config)
    assert verify_exactly_once(config).exactly_once
    recreate(stream, stream.interactions_topic, 2)
    produce(stream, events(600, first=200), rows_per_message=4)
    send_raw(stream, [_bad(0, 2, 1)])
    accounting = verify_exactly_once(config)
    assert not accounting.exactly_once
    assert (accounting.events_lost, accounting.events_doubled) == (600, 0)
    assert accounting.messages_removed > 0
    with pytest.raises(PositionLost, match=r"deleted and recreated.*stream\.lost_position"):
        train(0, config)
    on = replace(config, stream=replace(stream, lost_position=choice))
    read = 600 if choice == "earliest" else 0
    passed_over = 0 if read else sum(end_offsets(stream, stream.interactions_topic).values())
    progress = run_on_ranks(train, 2, on)[0][0] if choice == "earliest" else train(0, on)[0]
    accounting = verify_exactly_once(on)
    assert accounting.exactly_once, accounting
    assert progress["events_trained"] == 200 + read
    assert progress["messages_skipped"] == accounting.messages_skipped == passed_over
    now = current_topic_id(stream, stream.interactions_topic)
    assert newest(on).manifest["stream"]["topic_ids"] == {"0": now, "1": now}
    produce(stream, events(50, first=800))
    train(0, on)
    accounting = verify_exactly_once(on)
    assert accounting.exactly_once, accounting
    assert accounting.events_trained == 250 + read


def test_a_letter_of_the_new_topic_is_not_taken_for_one_of_the_earlier_that_was_replayed(
    stream_factory, tmp_path
):
    stream = replace(stream_factory(1), lost_position="earliest")
    config = config_of(stream, tmp_path)
    for topics in range(2):
        produce(stream, events(40, first=100 * topics))
        send_raw(stream, [_bad(0, 1, 5)])
        train(0, config)
        assert len(read_letters(stream)) == topics + 1
        assert replay_letters(stream, lambda letter: {**letter.event, "item_id": 1}).replayed == 1
        train(0, config)
        accounting = verify_exactly_once(config)
        assert accounting.exactly_once, accounting
        if topics == 0:
            recreate(stream, stream.interactions_topic)
    assert accounting.events_trained == 2 * 41


@pytest.mark.parametrize("partitions", [2, 4])
def test_a_topic_created_anew_under_a_live_run_is_read_from_its_beginning(
    stream_factory, tmp_path, partitions
):
    stream = stream_factory(2, lost_position="earliest", metadata_every_s=0.5, growth_wait_s=1)
    produce(stream, events(200), rows_per_message=4)
    config = config_of(
        stream, tmp_path, bounded=False, stop_after_rows=1000, linger_s=0.1, checkpoint_every_s=0.2
    )
    seen = []

    def replace_topic(progress):
        seen.append(progress["events"])
        if progress["events"] == 200 and len(seen) > 0 and "done" not in seen:
            seen.append("done")
            recreate(stream, stream.interactions_topic, partitions)
            produce(stream, events(800, first=200), rows_per_message=4)

    Worker(config, Collectives(), torch.device("cpu"), on_checkpoint=replace_topic).train()
    assert "done" in seen
    accounting = verify_exactly_once(config)
    assert accounting.exactly_once, accounting
    assert accounting.events_trained == 1000
    assert accounting.events_in_topic == 800


def test_a_topic_created_anew_with_fewer_partitions_is_one_line_that_says_so(stream_factory, tmp_path):
    stream = stream_factory(3, lost_position="earliest")
    produce(stream, events(60))
    config = config_of(stream, tmp_path)
    train(0, config)
    recreate(stream, stream.interactions_topic, 2)
    with pytest.raises(
        TopicMissing, match=r"has 2 partitions, without 2, .* recreated with fewer.*--init-from"
    ):
        train(0, config)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
def test_a_catalogue_topic_created_anew_with_other_partitions_is_read_whole(stream_factory, before, after):
    stream = stream_factory(1, metadata_every_s=0.2)

    def publish(partitions, titles):
        with KafkaAdminClient(bootstrap_servers=stream.bootstrap_servers) as admin:
            remove(admin, stream.items_topic)
            admin.create_topics({stream.items_topic: {"num_partitions": partitions, "replication_factor": 1}})
        ids = list(range(1, len(titles) + 1))
        publish_catalogue(stream, pa.table({"item_id": ids, "title": titles}), None)

    publish(before, ["a", "b"])
    with CatalogueReader(stream) as reader:
        assert sorted(reader.read_to_end().items["title"].to_pylist()) == ["a", "b"]
        publish(after, wanted := ["c", "d", "e", "f", "g", "h"])
        titles, deadline = [], time.monotonic() + 30
        while len(titles) < len(wanted):
            assert time.monotonic() < deadline, titles
            update = reader.poll(timeout_ms=100)
            titles += update.items["title"].to_pylist() if update else []
        assert sorted(titles) == wanted
        assert sorted(reader.positions()[stream.items_topic]) == list(range(after))


def test_a_catalogue_topic_created_anew_is_read_again_at_a_start_and_live(stream_factory):
    stream = stream_factory(1, metadata_every_s=0.2)

    def publish(titles):
        ids = list(range(1, len(titles) + 1))
        publish_catalogue(stream, pa.table({"item_id": ids, "title": titles}), None)

    publish(["a", "b"])
    with CatalogueReader(stream) as reader:
        assert reader.read_to_end().items["title"].to_pylist() == ["a", "b"]
        positions, ids = reader.positions(), reader.ids
        recreate(stream, stream.items_topic)
        publish(["c", "d", "e"])
        titles = []
        deadline = time.monotonic() + 30
        while len(titles) < 3:
            assert time.monotonic() < deadline, titles
            update = reader.poll(timeout_ms=100)
            titles += update.items["title"].to_pylist() if update else []
        assert titles == ["c", "d", "e"]
    with CatalogueReader(stream, positions, ids) as reader:
        assert reader.read_to_end().items["title"].to_pylist() == ["c", "d", "e"]
        assert reader.ids != ids
    # Of a checkpoint that knew no ids, the position is taken at its word.
    with CatalogueReader(stream, positions) as reader:
        assert reader.read_to_end().items["title"].to_pylist() == ["e"]


def test_nothing_of_a_new_topic_is_taken_for_the_earlier_ones_however_late_anybody_notices(stream_factory):
    """Offset 40 is in both: a fetch by name would go on there."""
    stream = stream_factory(1, lost_position="earliest", metadata_every_s=3600)
    produce(stream, events(40), rows_per_message=1)
    asked = []
    with KafkaSource(stream, [0], {}) as source:
        taken = take(source, 40)
        notice, source._identity.renewed = source._identity.renewed, lambda: asked.append(1) or ""
        recreate(stream, stream.interactions_topic)
        produce(stream, events(100, first=40), rows_per_message=1)
        # The silence itself is what is tested: several fetches are answered meanwhile.
        assert not source.wait(2.0)
        assert source.positions()[0].offset == 40
        source._identity.renewed = notice
        assert take(source, 100) == [f"e{n}" for n in range(40, 140)]
    assert taken == [f"e{n}" for n in range(40)]
    assert asked


def take(source, count):
    """The ids of so many events, in order."""
    ids, deadline = [], time.monotonic() + 30
    while len(ids) < count:
        assert time.monotonic() < deadline, ids
        source.wait(0.1)
        source.ready_rows()  # between two takes a position may move into the new topic
        ids += source.take({0: count - len(ids)}).rows["event_id"].to_pylist()
    return ids
