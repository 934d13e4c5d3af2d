"""Backpressure in bytes: a slow consumer's process holds no more than its settings allow."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest
from kafka import KafkaProducer

from streaming.codecs.codec import ARROW, ENCODING_HEADER, JSON, encode_events
from streaming.config import StreamConfig
from streaming.events.partitioner import partition_of_users
from streaming.sources.kafka_source import KafkaSource
from tests.support.source_buffers import buffered

PARTITIONS = 2
MESSAGES, MESSAGE_BYTES = 1200, 32_768
"""Of each partition: 79 MB in all."""
TEXT_OF_ROW = 160
BUFFERED_BYTES, FETCH_BYTES = 2_000_000, 1_000_000
BOUND = PARTITIONS * BUFFERED_BYTES + 2 * FETCH_BYTES
"""Decoded rows that wait, a fetch that is read and one that is on its way."""
SLACK = 24_000_000
"""What the client, the allocators and the messages of one poll (16 at least) take beside that."""


def _fill(config: StreamConfig, wire: bytes) -> dict[int, int]:
    """A topic whose events are mostly text; returns its ends."""
    home = partition_of_users(np.arange(1000), PARTITIONS)
    users = [int(np.flatnonzero(home == p)[0]) for p in range(PARTITIONS)]
    letters = np.random.default_rng(0).integers(97, 123, 2 * MESSAGE_BYTES, np.uint8).tobytes().decode()
    encode = _one_json_event if wire == JSON else _many_arrow_rows
    with KafkaProducer(bootstrap_servers=config.bootstrap_servers, max_request_size=1 << 22) as producer:
        for n in range(MESSAGES):
            text = letters[n : n + MESSAGE_BYTES]
            for p, user in enumerate(users):
                headers = [(ENCODING_HEADER, wire)]
                producer.send(config.interactions_topic, encode(user, n, text), partition=p, headers=headers)
        producer.flush()
    return dict.fromkeys(range(PARTITIONS), MESSAGES)


def _one_json_event(user: int, n: int, text: str) -> bytes:
    return orjson.dumps({"user_id": user, "item_id": n, "timestamp_ms": n + 1, "event_id": text})


def _many_arrow_rows(user: int, n: int, text: str) -> bytes:
    texts = [text[k : k + TEXT_OF_ROW] for k in range(0, MESSAGE_BYTES, TEXT_OF_ROW)]
    numbers = {"user_id": user, "item_id": n, "timestamp_ms": n + 1}
    columns = {name: np.full(len(texts), value) for name, value in numbers.items()}
    return encode_events(pa.RecordBatch.from_pydict(columns | {"event_id": texts}))


def _memory(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def _drain(config: StreamConfig, ends: dict[int, int], rows_at_once: int, *, late: bool) -> int:
    """Takes everything in so many pieces; how many rows. Late: not before reading ahead has come to a standstill."""
    with KafkaSource(config, range(PARTITIONS), {}, ends) as source:
        before = None
        while late and (now := buffered(source)) != before:
            before = now
            time.sleep(1.0)
        rows = 0
        while not source.finished:
            source.wait(1)
            rows += source.take(dict.fromkeys(ends, rows_at_once)).row_count
            time.sleep(0.01)
    return rows


def _growth(config: StreamConfig, ends: dict[int, int], rows_at_once: int) -> tuple[int, int]:
    """How much more memory this process has ever held than before it read, and how many rows it read."""
    warm = dict.fromkeys(ends, 30)  # what is compiled and loaded once is no buffer
    _drain(config, warm, rows_at_once, late=False)
    before = _memory("VmRSS")
    rows = _drain(config, ends, rows_at_once, late=True)
    return _memory("VmHWM") - before, rows


@pytest.mark.parametrize(
    ("wire", "rows"), [(JSON, 1), (ARROW, -(-MESSAGE_BYTES // TEXT_OF_ROW))], ids=["json", "arrow"]
)
def test_a_slow_taker_of_a_big_topic_grows_by_no_more_than_the_settings_say(stream_factory, wire, rows):
    config = stream_factory(
        PARTITIONS,
        buffered_rows_per_partition=1_000_000,
        buffered_bytes_per_partition=BUFFERED_BYTES,
        max_message_bytes=65_536,
        fetch_max_bytes=FETCH_BYTES,
    )
    ends = _fill(config, wire)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
        growth, taken = child.submit(_growth, config, ends, 40 * rows).result(timeout=120)
    assert taken == PARTITIONS * MESSAGES * rows
    assert growth < BOUND + SLACK
    assert BOUND + SLACK < PARTITIONS * MESSAGES * MESSAGE_BYTES / 2, (
        "else a reader without bounds would pass"
    )
