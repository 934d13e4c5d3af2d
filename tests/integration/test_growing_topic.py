"""A topic that gains partitions: the old ones are read to their ends first, then users move, in order, exactly once."""

import itertools
import json
import threading
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from kafka import KafkaAdminClient

from cluster.checkpoints.user_files import merged_users, partitions_in
from cluster.training.accounting import verify_exactly_once
from streaming.config import StreamConfig
from streaming.producer import EventProducer
from tests.ranks import run_on_ranks
from tests.worker_runs import START_MS, config_of, newest, train

USERS = 30


def _events(first: int, count: int, *, text: bool) -> pa.RecordBatch:
    """Item n is event n, so that a user's items say in which order the user's events came; some ids are texts."""
    users = np.random.default_rng(first).integers(0, USERS, count)
    items = np.arange(first, first + count)
    ids = [f"user {u}" for u in users] if text else users
    times = START_MS + items
    names = [f"e{n}" for n in items]
    return pa.RecordBatch.from_pydict(
        {"user_id": ids, "item_id": items, "timestamp_ms": times, "event_id": names}
    )


def _grow(stream: StreamConfig, partitions: int) -> None:
    with KafkaAdminClient(bootstrap_servers=stream.bootstrap_servers) as admin:
        admin.create_partitions({stream.interactions_topic: partitions})
        while len(admin.describe_topics([stream.interactions_topic])[0]["partitions"]) < partitions:
            time.sleep(0.05)


def _produce(stream: StreamConfig, first: int, count: int) -> None:
    with EventProducer(stream) as producer:
        for start in range(first, first + count, 20):
            producer.send(_events(start, 20, text=bool(start // 20 % 2)))
            producer.flush()


def _grow_while_it_trains(
    stream: StreamConfig, storage: Path, partitions: int, failed: list[BaseException]
) -> None:
    try:
        deadline = time.monotonic() + 100
        while _rows_read(storage) < 100:
            assert time.monotonic() < deadline, "nothing is trained"
            time.sleep(0.05)
        _grow(stream, partitions)
        _produce(stream, 200, 200)
    except BaseException as error:
        failed.append(error)


def _rows_read(storage: Path) -> int:
    try:
        return int(json.loads((storage / "progress.json").read_text()).get("rows_read", 0))
    except (FileNotFoundError, ValueError):
        return 0


def _assert_whole(config, partitions: int) -> None:
    accounting = verify_exactly_once(config)
    assert accounting.exactly_once, accounting
    assert (accounting.events_trained, accounting.dead_letters) == (400, 0), accounting
    checkpoint = newest(config)
    assert checkpoint.manifest["stream"]["partitions"] == partitions
    items = defaultdict(list)
    for partition in partitions_in(checkpoint):
        table = merged_users(checkpoint, partition)
        assert set((table["key_hash"].to_numpy() % partitions).tolist()) <= {partition}
        for user, found in zip(table["user_id"].to_pylist(), table["items"].to_pylist(), strict=True):
            assert user not in items
            items[user] = found
    # Every user is in one place, and has every event in the order in which it was sent.
    assert all(found == sorted(found) for found in items.values())
    assert sorted(itertools.chain(*items.values())) == list(range(400))


@pytest.mark.parametrize(("ranks", "before", "after"), [(1, 2, 3), (2, 2, 4)])
def test_a_topic_that_gains_partitions_while_it_is_trained_on(stream_factory, tmp_path, ranks, before, after):
    stream = stream_factory(before, metadata_every_s=0.2, growth_wait_s=1.0)
    _produce(stream, 0, 200)
    config = config_of(stream, tmp_path, bounded=False, linger_s=0.05, stop_after_rows=400)
    failed: list[BaseException] = []
    arguments = (stream, tmp_path, after, failed)
    thread = threading.Thread(target=_grow_while_it_trains, args=arguments, daemon=True)
    thread.start()
    run_on_ranks(train, ranks, config)
    thread.join()
    assert not failed
    _assert_whole(config, after)


def test_a_topic_that_gained_partitions_while_nothing_was_trained(stream_factory, tmp_path):
    stream = stream_factory(2)
    _produce(stream, 0, 200)
    config = config_of(replace(stream, user_attributes=["gender"]), tmp_path)
    cut = config_of(stream, tmp_path, stop_after_rows=90)
    train(0, cut)
    _grow(stream, 5)
    _produce(stream, 200, 200)
    [progress] = train(0, config)
    _assert_whole(config, 5)
    assert "occupation" in progress["notice"]  # of what the run began with, also after users have moved
