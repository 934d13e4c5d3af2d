"""A worker that is asked to stop, without Ray: what it commits, and what it does not wait for."""

import threading
import time

import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.collectives import Collectives
from cluster.training.worker import Worker
from streaming.config import StreamConfig
from streaming.kafka.topics import create_topics
from streaming.local_broker.broker import LocalBroker
from tests.support.worker_runs import config_of, events, produce, send_raw


class Notice:
    """Asked as soon as something holds."""

    def __init__(self):
        self.asked = False

    def close(self):
        pass


def run(config, ready, before_stop=lambda: None):
    """Train live until `ready(worker)`, then ask for a stop; what the worker said last, and how long the stop took."""
    notice, said = Notice(), []
    worker = Worker(config, Collectives(), torch.device("cpu"), run_id="one", stop=notice)
    thread = threading.Thread(target=lambda: said.append(worker.train()))
    thread.start()
    deadline = time.monotonic() + 60
    while not ready(worker):
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before_stop()
    notice.asked, started = True, time.monotonic()
    while worker.progress.last.get("state") != "stopped":
        assert thread.is_alive()
        time.sleep(0.02)
    took_s = time.monotonic() - started  # the rest is closing what the driver need not wait for
    thread.join(60)
    return said[0], took_s


def has_read(rows):
    return lambda worker: worker.progress.last.get("rows_read", 0) >= rows


def names(config):
    return CheckpointStore(config.checkpoint_location).names()


def test_a_stop_commits_what_came_since_the_last_checkpoint_and_an_idle_run_commits_nothing(
    stream_factory, tmp_path
):
    config = config_of(
        stream_factory(2), tmp_path, bounded=False, checkpoint_every_s=0.2, publish_every_s=0.2
    )
    produce(config.stream, events(300))
    idle_since = []

    def idle(worker):
        """Everything is read, saved and published, and ten more of each would have been due since."""
        waits = worker._since.unsaved or worker._since.unpublished or worker.publisher.busy
        done = has_read(300)(worker) and not waits
        if done and not idle_since:
            idle_since.append((time.monotonic(), names(config), worker.publisher.published))
        return bool(idle_since) and time.monotonic() - idle_since[0][0] > 2

    said, _ = run(config, idle)
    _, checkpoints, versions = idle_since[0]
    assert (said["state"], said["stop_error"]) == ("stopped", "")
    assert names(config) == checkpoints
    assert said["index"]["versions"] == versions

    produce(config.stream, events(200, first=300))
    rare = config_of(config.stream, tmp_path, bounded=False)
    said, _ = run(rare, has_read(301))
    newest = CheckpointStore(config.checkpoint_location).newest()
    assert newest.manifest["rows_read"] == said["rows_read"] > 300
    assert newest.step == said["step"]


def test_a_stop_waits_for_dead_letters_in_vain_only_as_long_as_it_may_and_says_what_is_missing(tmp_path):
    with LocalBroker(tmp_path / "kafka") as broker:
        stream = StreamConfig(bootstrap_servers=broker.bootstrap_servers)
        create_topics(stream, partitions=1)
        produce(stream, events(100))
        send_raw(stream, [{"value": b"no json at all", "partition": 0}])
        config = config_of(stream, tmp_path / "run", bounded=False)
        said, took_s = run(config, has_read(101), before_stop=broker.kill)
    assert said["state"] == "stopped"
    assert "without a last checkpoint" in said["stop_error"]
    assert "train.stop_within_s" in said["stop_error"]
    assert took_s < config.train.stop_within_s
    assert names(config) == []


@pytest.mark.parametrize("setting", [0.0, -1.0])
def test_no_time_to_stop_is_refused(setting):
    from cluster.config import TrainConfig

    with pytest.raises(ValueError, match=r"train\.stop_within_s must be positive"):
        TrainConfig(stop_within_s=setting)
