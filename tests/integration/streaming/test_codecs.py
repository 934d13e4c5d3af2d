"""Topics that other producers compress, in every codec of Kafka, and the error for a codec that is not installed."""

import sys

import orjson
import pytest
from kafka import KafkaProducer

from streaming.catalogue.reader import CatalogueReader
from streaming.config import client_arguments
from streaming.sources.kafka_source import BrokerRefused, KafkaSource, end_offsets
from tests.support.worker_runs import START_MS


def _send(stream, codec, count=300):
    with KafkaProducer(**client_arguments(stream), compression_type=codec, linger_ms=50) as producer:
        for n in range(count):
            event = {"user_id": 1, "item_id": n, "timestamp_ms": START_MS + n}
            item = {"item_id": n, "title": f"the title of item {n}"}
            producer.send(stream.interactions_topic, orjson.dumps(event))
            producer.send(stream.items_topic, orjson.dumps(item), key=str(n).encode())


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_events_and_catalogue_are_read_in_every_codec(stream_factory, codec):
    stream = stream_factory(1)
    _send(stream, codec)
    ends = end_offsets(stream, stream.interactions_topic)
    with KafkaSource(stream, [0], {}, ends) as source:
        assert source.wait_full(300, 30)
        taken = source.take({0: 1000})
    assert taken.rows["item_id"].to_pylist() == list(range(300))
    assert taken.dead == []
    with CatalogueReader(stream) as reader:
        assert reader.read_to_end().items["title"].to_pylist() == [
            f"the title of item {n}" for n in range(300)
        ]


def test_a_codec_that_is_not_installed_is_said_in_one_line_and_no_message_is_taken_for_a_bad_one(
    stream_factory, monkeypatch
):
    stream = stream_factory(1)
    _send(stream, "zstd", 3)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    ends = end_offsets(stream, stream.interactions_topic)
    with KafkaSource(stream, [0], {}, ends) as source:
        with pytest.raises(BrokerRefused, match=r"zstd.*install the package of the codec"):
            source.wait_full(3, 30)
        assert source.positions()[0] == (0, 0)
    with CatalogueReader(stream) as reader, pytest.raises(BrokerRefused, match="zstd"):
        reader.read_to_end()
