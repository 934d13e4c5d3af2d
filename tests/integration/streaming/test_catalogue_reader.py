"""CatalogueReader on a real broker."""

import orjson
import pytest
from kafka import KafkaProducer

from streaming.catalogue.catalogue import Catalogue
from streaming.catalogue.reader import CatalogueReader
from streaming.events.position import Position
from streaming.kafka.consumer import TopicMissing, current_topic_id


def _send(config, items=(), users=()):
    with KafkaProducer(bootstrap_servers=config.bootstrap_servers) as producer:
        for topic, name, numbers in (
            (config.items_topic, "item_id", items),
            (config.users_topic, "user_id", users),
        ):
            for number in numbers:
                value = orjson.dumps({name: abs(number), "title": f"t{number}"}) if number >= 0 else None
                producer.send(topic, key=str(abs(number)).encode(), value=value)


def test_everything_up_to_the_end_is_read_and_then_only_what_is_new(stream_config):
    _send(stream_config, items=range(1, 30), users=[5])
    catalogue = Catalogue(stream_config)
    with CatalogueReader(stream_config) as reader:
        catalogue.apply(reader.read_to_end())
        assert catalogue.item_ids.tolist() == list(range(1, 30))
        assert reader.poll() is None
        saved = reader.positions()
    assert saved == {stream_config.items_topic: {0: (29, 0)}, stream_config.users_topic: {0: (1, 0)}}
    _send(stream_config, items=[-3, 100])
    with CatalogueReader(stream_config, saved) as reader:
        update = reader.read_to_end()
        assert update.items["item_id"].to_pylist() == [3, 100]
        assert update.items["deleted"].to_pylist() == [True, False]
        assert update.users.num_rows == 0


def test_updates_arrive_while_it_follows(stream_config):
    with CatalogueReader(stream_config) as reader:
        assert reader.read_to_end().items.num_rows == 0
        _send(stream_config, items=[8])
        update = None
        for _ in range(50):
            update = update or reader.poll(timeout_ms=100)
        assert update.items["item_id"].to_pylist() == [8]


def test_unusable_records_are_kept_as_dead_letters_with_their_position(stream_config):
    with KafkaProducer(bootstrap_servers=stream_config.bootstrap_servers) as producer:
        producer.send(stream_config.items_topic, key=b"1", value=b"nonsense")
    with CatalogueReader(stream_config) as reader:
        reader.read_to_end()
        (letter,) = reader.dead_letters
    topic = stream_config.items_topic
    assert letter.key == f"{topic}/0/0/0/{current_topic_id(stream_config, topic)[:8]}".encode()
    assert letter.value == b"nonsense"


def test_positions_of_another_log_start_from_the_beginning_and_say_so(stream_config, caplog):
    _send(stream_config, items=[1, 2])
    elsewhere = {stream_config.items_topic: {0: Position(1000, 0)}}
    with CatalogueReader(stream_config, elsewhere) as reader:
        assert reader.read_to_end().items["item_id"].to_pylist() == [1, 2]
    assert f"partition 0 of {stream_config.items_topic} holds records 0 to 2, not 1000" in caplog.text


def test_a_missing_topic_names_its_setting(stream_factory):
    with pytest.raises(TopicMissing, match=r"stream\.items_topic"):
        CatalogueReader(stream_factory(partitions=0))
