"""A broker that is unreachable for a while: trainer and producer report it once, wait, and continue."""

import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.audit.exactly_once import verify_exactly_once
from cluster.training.intake import catalogue_feed, intake
from streaming.config import StreamConfig
from streaming.kafka.topics import create_topics
from streaming.local_broker.broker import LocalBroker
from streaming.producing.producer import EventProducer
from streaming.sources.kafka_source import BrokerUnavailable, KafkaSource
from tests.support.worker_runs import config_of, events, produce, send_raw, train

# Longer than the clients' own patience: every request times out, and the producer has to be replaced.
AWAY_S = 60.0


def _progress(storage: Path, name: str) -> int:
    try:
        return int(json.loads((storage / "progress.json").read_text()).get(name, 0))
    except (FileNotFoundError, ValueError):
        return 0


def _wait(condition, timeout_s=90):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def _send_while_it_is_away(stream: StreamConfig, ready: threading.Event, away: threading.Event) -> int:
    with EventProducer(stream) as producer:
        producer.send(events(20, first=100))
        producer.flush()
        ready.set()
        away.wait()
        producer.send(events(80, first=120))
        producer.flush()
        return producer.reopened


def test_trainer_and_producer_wait_for_a_broker_that_is_away_for_a_minute_and_go_on(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    with LocalBroker(tmp_path / "kafka") as broker, ThreadPoolExecutor(2) as threads:
        stream = StreamConfig(bootstrap_servers=broker.bootstrap_servers, buffered_rows_per_partition=40)
        create_topics(stream, partitions=2)
        produce(stream, events(100))
        # The checkpoints that come due while the broker is away wait for this one's letter.
        send_raw(stream, [{"value": b"{broken", "partition": 0}])
        config = config_of(
            stream,
            tmp_path / "run",
            bounded=False,
            linger_s=0.02,
            checkpoint_every_s=0.5,
            stop_after_rows=201,
        )
        ready, away = threading.Event(), threading.Event()
        trained = threads.submit(train, 0, config)
        sent = threads.submit(_send_while_it_is_away, stream, ready, away)
        _wait(lambda: ready.is_set() and _progress(tmp_path / "run", "rows_read") >= 60)
        broker.kill()
        away.set()
        time.sleep(AWAY_S)
        broker.start()
        assert sent.result(timeout=90) >= 1
        (progress,) = trained.result(timeout=90)
        assert (progress["events_trained"], progress["dead_letters"]) == (200, 1)
        accounting = verify_exactly_once(config)
        assert accounting.exactly_once, accounting
    told = [record.getMessage() for record in caplog.records if not record.name.startswith("kafka")]
    assert sum("no broker answers" in line and "waiting for up to 600 s" in line for line in told) == 1
    assert sum("are back after" in line for line in told) == 1
    assert any("opening another producer" in line for line in told)
    assert any("takes messages again" in line for line in told)


def test_a_run_that_starts_while_the_broker_is_away_waits_for_it_wherever_it_first_needs_it(
    tmp_path, monkeypatch
):
    # A broker lives no longer than the thread that started it.
    with LocalBroker(tmp_path / "kafka") as broker, ThreadPoolExecutor(1) as starter:
        stream = StreamConfig(bootstrap_servers=broker.bootstrap_servers, connect_timeout_s=1.0)
        create_topics(stream, partitions=1)
        produce(stream, events(60))
        starts = []

        def start_later():
            time.sleep(2.5)
            broker.start()

        def away_first(module, name):
            """The broker goes as this is called for the first time, and comes back later than a connection waits."""
            ask, asked = getattr(module, name), []

            def asking(*arguments, **more):
                if not asked:
                    broker.kill()
                    starts.append(starter.submit(start_later))
                asked.append(name)
                return ask(*arguments, **more)

            monkeypatch.setattr(module, name, asking)
            return asked

        calls = [
            away_first(intake, "topic_range"),
            away_first(catalogue_feed, "CatalogueReader"),
            away_first(intake, "KafkaSource"),
        ]
        config = config_of(stream, tmp_path / "run")
        (progress,) = train(0, config)
        assert len(starts) == 3
        assert all(start.result() is None for start in starts)
        assert progress["events_trained"] == 60
        assert all(len(asked) > 1 for asked in calls), calls
        assert verify_exactly_once(config).exactly_once


def test_a_broker_that_stays_away_is_given_up_with_the_settings_to_change(tmp_path):
    with LocalBroker(tmp_path) as broker:
        stream = StreamConfig(bootstrap_servers=broker.bootstrap_servers, broker_patience_s=1.5)
        create_topics(stream, partitions=1)
        with KafkaSource(stream, [0], {}) as source:
            broker.kill()
            with pytest.raises(BrokerUnavailable, match=r"stream\.broker_patience_s"):
                _wait(lambda: source.wait(1.0), 30)
