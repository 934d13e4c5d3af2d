"""Verbs on their own Ray, with a real broker, stopped: `train` under load, idle, while it starts, without its head;
`refresh`, `replay` and `demo` in the midst of their work."""

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from cluster.audit.exactly_once import verify_exactly_once
from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.launching.processes import descendants
from cluster.observability.progress_file import read_progress
from deploy.command.children import Child
from streaming.kafka.consumer import TopicMissing, end_offsets
from tests.support.local_ray import free_port, wait_until
from tests.support.worker_runs import config_of, events, produce

pytestmark = pytest.mark.timeout(600)

STOP_S = 10.0
START_S = 180.0
DUMPS = ("*** SIG", "Traceback", "Reporting training result", "PlacementGroupCleaner")


class Run:
    """One verb, as from a terminal: the leader of a process group of its own."""

    def __init__(self, config, name, verb="train", *options):
        self.folder = Path(config.storage_path)
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.folder / "settings.yaml"
        settings.write_text(yaml.safe_dump(asdict(config)))
        command = [sys.executable, "-m", "deploy", verb, "--config", str(settings), *options]
        self.child = Child(name, command, self.folder / f"{name}.log")

    def __enter__(self):
        # What an earlier run said must not be taken for this one's word.
        (self.folder / "progress.json").unlink(missing_ok=True)
        self.child.start()
        return self

    def __exit__(self, *_):
        self.child.stop()

    @property
    def log(self):
        return self.child.log_path.read_text()

    def said(self):
        return read_progress(self.folder) or {}

    def wait(self, holds):
        wait_until(holds, self.child, START_S)

    def stop(self, number):
        """Signal the whole group, as a terminal and `timeout` do; exit status, seconds, and what of Ray still runs."""
        processes = descendants(self.child.pid)
        started = time.monotonic()
        os.killpg(self.child.pid, number)
        while self.child.exit_status() is None and time.monotonic() < started + 6 * STOP_S:
            time.sleep(0.02)
        took_s = time.monotonic() - started
        return self.child.exit_status(), took_s, [process for process in processes if process.alive]


@contextmanager
def load(stream, first):
    """Events without end, faster than they are trained; gives how many there were."""
    ended, sent = threading.Event(), [0]

    def feed():
        while not ended.is_set():
            produce(stream, events(500, first=first + sent[0]), rows_per_message=100)
            sent[0] += 500

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield sent
    finally:
        ended.set()
        thread.join()


def listening_addresses(pids):
    """The addresses of the TCP sockets on which any of the processes listens."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.update(re.findall(r"socket:\[(\d+)\]", os.readlink(descriptor)))
            except OSError:
                continue
    found = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:  # LISTEN
                words = bytes.fromhex(fields[1].partition(":")[0])
                swapped = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                found.append(socket.inet_ntop(family, swapped))
    return found


@pytest.fixture(scope="module")
def live_config(kafka_broker, tmp_path_factory):
    from streaming.config import StreamConfig
    from streaming.kafka.topics import create_topics

    topics = {f"{kind}_topic": f"stopping.{kind}" for kind in ("interactions", "items", "users")}
    stream = StreamConfig(bootstrap_servers=kafka_broker.bootstrap_servers, **topics)
    create_topics(stream, partitions=2)
    produce(stream, events(500))
    return config_of(
        stream,
        tmp_path_factory.mktemp("stopping") / "run",
        bounded=False,
        checkpoint_every_s=3600,
        publish_every_s=2,
    )


@pytest.fixture(scope="module")
def under_load(live_config):
    """A run that SIGTERM stops under load: what became of it, and what it was before."""
    with Run(live_config, "load") as run:
        run.wait(lambda: run.said().get("state") == "training")
        with load(live_config.stream, 500) as sent:
            run.wait(lambda: run.said()["step"] >= 10)
            addresses = listening_addresses([run.child.pid, *(p.pid for p in descendants(run.child.pid))])
            ended = run.stop(signal.SIGTERM)
        return ended, run.said(), run.log, addresses, 500 + sent[0]


def test_under_load_sigterm_commits_what_was_read_and_ends_with_status_0_in_time_and_leaves_nothing(
    under_load, live_config
):
    (status, took_s, left), said, log, _, _ = under_load
    assert status == 0, log[-4000:]
    assert took_s < STOP_S
    assert left == []
    newest = CheckpointStore(live_config.checkpoint_location).newest()
    assert (said["state"], said["stop_error"]) == ("stopped", "")
    assert newest.manifest["rows_read"] == said["rows_read"] >= 500
    assert newest.step == said["step"]


def test_a_run_says_nothing_of_rays_troubles_and_of_each_report(under_load):
    _, _, log, _, _ = under_load
    assert "RayTrainWorker" in log or "TrainController" in log  # what they say does come through
    assert [text for text in DUMPS if text in log] == []


def test_every_server_of_an_own_ray_listens_on_the_loopback_address(under_load):
    _, _, _, addresses, _ = under_load
    assert len(addresses) > 8
    assert {a.removeprefix("::ffff:") for a in addresses} <= {"127.0.0.1", "::1"}


def test_the_next_run_goes_on_from_there_and_idle_ctrl_c_stops_it_without_loss_or_repetition(
    under_load, live_config
):
    _, before, _, _, sent = under_load
    with Run(live_config, "idle") as run:
        run.wait(lambda: run.said().get("state") == "training")
        assert run.said()["rows_read"] >= before["rows_read"]
        run.wait(lambda: run.said()["rows_read"] == run.said()["events_trained"] == sent)
        versions = idle_versions(run)
        status, took_s, left = run.stop(signal.SIGINT)
        log = run.log
    assert status == 0, log[-4000:]
    assert took_s < STOP_S
    assert left == []
    assert run.said()["rows_read"] == sent
    newest = CheckpointStore(live_config.checkpoint_location).newest()
    assert newest.manifest["rows_read"] == sent
    assert verify_exactly_once(live_config).exactly_once
    assert versions == 1


def idle_versions(run):
    """How many versions more a run makes that has read all: the one of its last step, whatever the clock says."""
    run.wait(lambda: step_of_live_version(run) == run.said()["step"])
    count = run.said()["index"]["versions"]
    time.sleep(2.5 * 2)  # the silence itself is what is tested: two more would be due by then
    return 1 + run.said()["index"]["versions"] - count


def step_of_live_version(run):
    """Of the version that the run says is live; its word comes up to half a second after the version itself."""
    index = run.said().get("index") or {}
    manifest = run.folder / "index" / str(index.get("version")) / "manifest.json"
    return json.loads(manifest.read_text())["step"] if manifest.is_file() else None


def test_a_stop_while_ray_starts_is_clean_too(live_config, tmp_path):
    with Run(replace(live_config, storage_path=str(tmp_path / "run")), "starting") as run:
        run.wait(lambda: len(descendants(run.child.pid)) > 3)
        status, took_s, left = run.stop(signal.SIGTERM)
        assert status == 0, run.log[-4000:]
        assert took_s < STOP_S
        assert left == []
        assert run.said()["state"] == "stopped"
        assert [text for text in DUMPS if text in run.log] == []


def test_a_run_whose_head_died_says_so_in_one_line_and_fails(live_config):
    with Run(live_config, "headless") as run:
        run.wait(lambda: run.said().get("state") == "training")
        processes = descendants(run.child.pid)
        [head] = [process for process in processes if process.name == "gcs_server"]
        head.kill()
        run.wait(lambda: run.child.exit_status() is not None)
        assert run.child.exit_status() == 1
        ours = [line for line in run.log.splitlines() if line.startswith("freshet: error: ")]
        assert len(ours) == 1
        assert "Ray's head on this machine is gone" in ours[0]
        assert [process for process in processes if process.alive] == []


def test_a_run_waits_for_a_broker_that_is_away_says_so_once_and_can_be_stopped(live_config, tmp_path):
    stream = replace(live_config.stream, bootstrap_servers=f"127.0.0.1:{free_port()}", connect_timeout_s=0.5)
    config = replace(live_config, stream=stream, storage_path=str(tmp_path / "run"))
    with Run(config, "waiting") as run:
        run.wait(lambda: "waiting for up to" in run.log)
        time.sleep(3.0)  # it asks several times more
        status, took_s, _ = run.stop(signal.SIGINT)
        log = run.log
    assert status == 0, log
    assert took_s < STOP_S
    assert log.count("No Kafka broker answers") == 1
    assert len(log.splitlines()) < 5, log


def test_a_refresh_that_is_stopped_ends_with_143_and_leaves_the_live_version_and_no_trace(live_config):
    current = Path(live_config.storage_path) / "index" / "CURRENT"
    before = current.read_text()
    with Run(live_config, "refresh", "refresh") as run:
        run.wait(lambda: any(p.name.startswith("ray::RayTrain") for p in descendants(run.child.pid)))
        ended = run.stop(signal.SIGTERM)
        assert_stopped(run, ended, 128 + signal.SIGTERM)
    assert current.read_text() == before
    assert [*run.folder.glob(".refresh-*"), *run.folder.glob("checkpoints/claims/*.hold.json")] == []


def test_a_replay_that_is_stopped_ends_with_130(live_config, tmp_path):
    stream = replace(live_config.stream, interactions_topic="stopping.replayed")
    config = replace(live_config, stream=stream, storage_path=str(tmp_path / "run"))
    with Run(config, "replay", "replay", "--seconds", "600") as run:
        run.wait(lambda: sum(ends_of(stream)) > 0)
        ended = run.stop(signal.SIGINT)
        assert_stopped(run, ended, 128 + signal.SIGINT)


def test_a_demo_that_is_stopped_under_load_ends_with_130_and_its_trainer_commits(live_config, tmp_path):
    options = ("--dir", str(tmp_path / "demo"), "--seconds", "600", "train.checkpoint_every_s=3600")
    storage = tmp_path / "demo" / "latest" / "storage"
    with Run(replace(live_config, storage_path=str(tmp_path / "run")), "demo", "demo", *options) as run:
        run.wait(lambda: (read_progress(storage) or {}).get("step", 0) >= 2)
        ended = run.stop(signal.SIGINT)
        assert_stopped(run, ended, 128 + signal.SIGINT)
    said = read_progress(storage)
    assert (said["state"], said["stop_error"]) == ("stopped", "")
    assert CheckpointStore(str(storage / "checkpoints")).newest().manifest["rows_read"] == said["rows_read"]


def assert_stopped(run, ended, status):
    found, took_s, left = ended
    assert found == status, run.log[-4000:]
    assert took_s < STOP_S
    assert left == []
    assert [text for text in (*DUMPS, "freshet: error") if text in run.log] == []


def ends_of(stream):
    """Where each partition of the stream's events ends; nothing before there is a topic."""
    try:
        return end_offsets(stream, stream.interactions_topic).values()
    except TopicMissing:
        return []
