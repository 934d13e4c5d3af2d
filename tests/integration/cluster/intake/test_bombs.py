"""Messages that decode to gigabytes, on a real broker: one letter each, in a run limited to 2 GiB by the kernel."""

import multiprocessing
import os
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from kafka import KafkaProducer

from cluster.audit.exactly_once import verify_exactly_once
from streaming.config import client_arguments
from tests.support.bombs import ARROW_HEADERS, arrow_bombs, wide_json
from tests.support.worker_runs import config_of, events, produce, reasons_of, send_raw, train

LIMIT_BYTES = 2 << 30
BATCHES = {"gzip": 100, "lz4": 200, "zstd": 200, "snappy": 80}
"""Megabytes that a message of zeros decompresses to; compressed they are all below 4 MiB."""


def peak_bytes():
    """The most memory that this process has had; `ru_maxrss` would count what its parent had too."""
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")
    ]
    return int(line.split()[1]) * 1024


def _limited(config):
    """Trains, in a process whose private memory, libraries' included, the kernel limits; the most that it had."""
    # A small machine: addresses that tables reserve for as much as the machine has count as if they were used.
    sysconf = os.sysconf
    with patch.object(os, "sysconf", lambda name: 16_384 if name == "SC_PHYS_PAGES" else sysconf(name)):
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
        with pytest.raises(MemoryError):
            np.empty(LIMIT_BYTES, np.uint8)
        (progress,) = train(0, config)
    return progress, peak_bytes()


def _send_compressed(stream, topic, values, key=None):
    for codec, megabytes in values.items():
        settings = {"compression_type": codec, "max_request_size": 1 << 29}
        with KafkaProducer(**client_arguments(stream), **settings) as producer:
            producer.send(topic, b"0" * (megabytes * 1_000_000), key=key, partition=0).get(30)


def test_messages_that_decode_to_gigabytes_are_a_letter_each_and_cost_a_run_less_than_2_gib(
    stream_factory, tmp_path
):
    stream = stream_factory(1)
    produce(stream, events(200))
    bombs = arrow_bombs()
    send_raw(stream, [{"value": value, "headers": ARROW_HEADERS} for value in bombs.values()])
    _send_compressed(stream, stream.interactions_topic, BATCHES)
    send_raw(stream, [{"value": wide_json(1, 3)}] * 8)
    for topic in (stream.items_topic, stream.users_topic):
        _send_compressed(stream, topic, {"zstd": 200}, key=b"1")
    produce(stream, events(200, first=200))
    config = config_of(stream, tmp_path)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        progress, peak = pool.submit(_limited, config).result(timeout=240)
    assert peak < LIMIT_BYTES
    accounting = verify_exactly_once(config)
    assert accounting.exactly_once, accounting
    assert progress["events_trained"] == 400 + 8
    reasons = reasons_of(stream)
    assert len(reasons) == len(bombs) + len(BATCHES) + 2
    assert (
        sum("cannot be read: it decompresses to more than" in reason for reason in reasons)
        == len(BATCHES) + 2
    )
