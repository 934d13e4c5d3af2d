"""A topic that gains partitions: old ones are read to their ends, then users move, in order, exactly once."""

import itertools
import json
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from kafka import KafkaAdminClient
from typer.testing import CliRunner

from cluster.audit.exactly_once import verify_exactly_once
from cluster.checkpoints.parts.users import merged_users, partitions_in
from deploy.cli import app
from streaming.config import StreamConfig
from streaming.kafka import delivery
from streaming.producing.producer import EventProducer
from tests.support.ranks import run_on_ranks
from tests.support.worker_runs import START_MS, config_of, newest, reasons_of, send_raw, train, users_of

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
        _send(producer, first, count, 20)


def _send(producer: EventProducer, first: int, count: int, at_once: int) -> None:
    for start in range(first, first + count, at_once):
        some = min(at_once, first + count - start)
        producer.send(_events(start, some, text=bool(start // 20 % 2)))
        producer.flush()


def _send_throughout(stream: StreamConfig, storage: Path, partitions: int) -> None:
    """One producer stays open: events come before the topic grows, while it does, and after all know of it."""
    with EventProducer(stream) as producer:
        _send(producer, 0, 200, 20)
        _until(lambda: _rows_read(storage) >= 100)
        growth = threading.Thread(target=_grow, args=(stream, partitions), daemon=True)
        growth.start()
        sent = 200
        while producer.partitions < partitions:
            assert sent < 380, "the producer does not notice that the topic has grown"
            _send(producer, sent, 2, 2)
            sent += 2
            time.sleep(0.05)
        growth.join()
        _send(producer, sent, 400 - sent, 10)


def _open_after_the_growth(stream: StreamConfig, storage: Path, partitions: int) -> None:
    """Such a producer is quicker than the trainer."""
    _produce(stream, 0, 200)
    _until(lambda: _rows_read(storage) >= 100)
    _grow(stream, partitions)
    _produce(stream, 200, 200)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def _rows_read(storage: Path) -> int:
    try:
        return int(json.loads((storage / "progress.json").read_text()).get("rows_read", 0))
    except (FileNotFoundError, ValueError):
        return 0


def _assert_whole(config, partitions: int, events: int = 400, dead: int = 0) -> None:
    accounting = verify_exactly_once(config)
    assert accounting.exactly_once, accounting
    assert (accounting.events_trained, accounting.dead_letters) == (events, dead), accounting
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
    assert sorted(itertools.chain(*items.values())) == list(range(events))


@pytest.mark.parametrize(
    ("ranks", "before", "after", "sender", "wait_s"),
    [(1, 2, 3, _open_after_the_growth, 1.0), (2, 4, 8, _send_throughout, 5.0)],
)
def test_a_topic_that_gains_partitions_while_it_is_trained_on(
    stream_factory, tmp_path, monkeypatch, ranks, before, after, sender, wait_s
):
    # Later than the trainer does, as a producer may: without the wait its rows would come too late.
    monkeypatch.setattr(delivery, "METADATA_MAX_AGE_MS", 2000)
    stream = stream_factory(before, metadata_every_s=0.2, growth_wait_s=wait_s)
    config = config_of(stream, tmp_path, bounded=False, linger_s=0.05, stop_after_rows=400)
    with ThreadPoolExecutor(1) as thread:
        sending = thread.submit(sender, stream, tmp_path, after)
        run_on_ranks(train, ranks, config)
        sending.result()
    _assert_whole(config, after)


def test_a_sender_slower_than_the_wait_has_its_rows_dead_lettered_and_a_replay_brings_each_back_once(
    stream_factory, tmp_path, caplog
):
    caplog.set_level(logging.WARNING)
    stream = stream_factory(2, metadata_every_s=0.2, growth_wait_s=0.5)
    config = config_of(stream, tmp_path, bounded=False, linger_s=0.05, stop_after_rows=420)
    # Users of the third and the fourth of four partitions belonged to the first and the second of two.
    late = [(user, p) for p in (0, 1) for user in users_of(p + 2, 4, 10)]

    def send() -> None:
        _open_after_the_growth(stream, tmp_path, 4)
        _until(lambda: "users have moved" in caplog.text)
        send_raw(
            stream, [{"value": _late_event(n, user), "partition": p} for n, (user, p) in enumerate(late)]
        )

    with ThreadPoolExecutor(1) as thread:
        sending = thread.submit(send)
        train(0, config)
        sending.result()
    _assert_whole(config, 4, dead=20)
    assert reasons_of(stream) == [
        f"the user belongs to partition {p + 2} of 4, but the row was read from partition {p}: key messages by the "
        "user id, with partitioner=murmur2_random in producers of librdkafka"
        for p in (0, 1)
        for _ in range(10)
    ]
    for counts in ((20, 0), (0, 20)):
        assert _replay(stream, tmp_path / "replay.json") == counts
    train(0, config_of(stream, tmp_path))
    _assert_whole(config, 4, events=420, dead=20)


def _late_event(n: int, user: int) -> dict[str, object]:
    return {
        "user_id": user,
        "item_id": 400 + n,
        "timestamp_ms": START_MS + 400 + n,
        "event_id": f"e{400 + n}",
    }


def _replay(stream: StreamConfig, file: Path) -> tuple[int, int]:
    """How many letters came back, and how many had before."""
    names = ("bootstrap_servers", "interactions_topic", "items_topic", "users_topic")
    settings = [f"stream.{name}={getattr(stream, name)}" for name in names]
    result = CliRunner().invoke(app, ["dead-letters", "replay", "--json", str(file), *settings])
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text())
    return report["replayed"], report["already"]


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
