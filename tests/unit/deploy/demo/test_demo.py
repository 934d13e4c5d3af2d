import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from deploy.command.children import Child, ChildFailed
from deploy.command.terminal import Terminal
from deploy.datasets.datasets import Dataset
from deploy.demo import demo as demo_module
from deploy.demo.demo import Demo, TrainerStalled, run_demo
from deploy.demo.options import DemoOptions
from deploy.demo.settings import new_run_dir, own_bootstrap_servers, write_settings
from deploy.screen.display import Display
from deploy.screen.screen import DemoView

EVENTS = 60_000

# Stands for `freshet train`: says what a trainer says, in the same file, and ends.
FAKE_TRAINER = """
import json, os, pathlib, sys, time
storage, records = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
storage.mkdir(parents=True)
for record in records:
    partial = storage / ".partial"
    partial.write_text(json.dumps(record))
    partial.replace(storage / "progress.json")
    time.sleep(float(sys.argv[3]))
sys.exit(int(sys.argv[4]))
"""


class FakeBroker:
    bootstrap_servers = "127.0.0.1:1234"
    last_stopped = False

    def __init__(self, *arguments, **options) -> None:
        self.stopped = False

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        FakeBroker.last_stopped = True


@pytest.fixture
def world(monkeypatch, progress_record):
    """A demo whose parts are fakes; `records` is what the trainer says, `status` how it ends."""
    times = list(range(EVENTS))
    table = pa.table({"user_id": [n % 3 for n in times], "item_id": times, "timestamp_ms": times})
    data = Dataset("fake", table, pa.table({}), pa.table({}), {})
    world = SimpleNamespace(
        records=[progress_record(), progress_record(state="finished", restarts=0)], status=0, pause="0.25"
    )
    monkeypatch.setattr(demo_module, "POLL_S", 0.05)
    FakeBroker.last_stopped = False
    accounting = {"events_in_topic": EVENTS, "events_trained": EVENTS, "dead_letters": 0, "hash_equal": True}
    accounting |= {"events_negative": 0, "events_ignored": 0, "events_lost": 0, "events_doubled": 0}

    def trainer(run_dir: Path, *, take_over: bool) -> Child:
        arguments = [str(run_dir / "storage"), json.dumps(world.records), world.pause, str(world.status)]
        return Child(
            "the trainer", [sys.executable, "-c", FAKE_TRAINER, *arguments], run_dir / "logs/train.log"
        )

    monkeypatch.setattr(demo_module, "fetch_dataset", lambda name, progress: data)
    monkeypatch.setattr(demo_module, "trainer_child", trainer)
    monkeypatch.setattr(
        demo_module, "recommend_to", lambda config, users, k: [_entry(user) for user in users]
    )
    monkeypatch.setattr("streaming.local_broker.broker.LocalBroker", FakeBroker)
    monkeypatch.setattr("streaming.kafka.topics.create_topics", lambda config, partitions: None)
    monkeypatch.setattr(
        "streaming.producing.catalogue.publish_catalogue",
        lambda *arguments: SimpleNamespace(items=1682, users=943),
    )
    monkeypatch.setattr(
        "streaming.producing.replay.replay",
        lambda stream, dataset, **options: SimpleNamespace(events=dataset.interactions.num_rows),
    )
    monkeypatch.setattr("cluster.audit.exactly_once.verify_exactly_once", lambda config, path: accounting)
    return world


def _entry(user: int) -> dict:
    item = {"item_id": 1, "title": "Toy Story (1995)", "score": 0.9}
    return {"user_id": user, "watched_last": ["Heat (1995)"], "items": [item]}


def test_a_demo_in_order_writes_its_figures_and_exits_with_0(world, tmp_path, capsys):
    status = run_demo(DemoOptions(tmp_path / "runs", seconds=0, json_path=tmp_path / "demo.json"))
    written = json.loads((tmp_path / "demo.json").read_text())
    assert status == 0
    assert written["ok"] is True
    assert (written["events_produced"], written["events_trained"]) == (EVENTS, EVENTS)
    assert written["progressive_hr10"] == pytest.approx(0.2)
    assert [entry["user_id"] for entry in written["recommendations"]] == [2, 1, 0]
    run_dir = Path(written["run_dir"])
    assert json.loads((run_dir / "demo.json").read_text()) == written
    assert (tmp_path / "runs" / "latest").resolve() == run_dir
    out = capsys.readouterr().out
    assert "Toy Story (1995)" in out
    assert "trained 59,976" in out
    assert FakeBroker.last_stopped


def test_the_runs_settings_file_is_what_every_verb_goes_on_with(world, tmp_path):
    run_demo(DemoOptions(tmp_path, seconds=0, overrides=["train.checkpoint_every_s=7", "seed=5"]))
    text = (tmp_path / "latest" / "settings.yaml").read_text()
    for part in ("checkpoint_every_s: 7", "seed: 5", "stop_after_rows: 60000", "127.0.0.1:1234", "storage"):
        assert part in text


def test_figures_out_of_order_are_written_and_exit_with_1(world, tmp_path, progress_record, capsys):
    index = {"version": "v00000002", "versions": 2}
    world.records = [progress_record(), progress_record(state="finished", index=index)]
    assert run_demo(DemoOptions(tmp_path, seconds=0, json_path=tmp_path / "demo.json")) == 1
    assert json.loads((tmp_path / "demo.json").read_text())["ok"] is False
    assert "Failed checks: 2 index versions" in capsys.readouterr().out


def test_chaos_that_never_killed_anybody_exits_with_1(world, tmp_path, progress_record):
    world.records = [
        progress_record(checkpoint=None),
        progress_record(state="finished"),
    ]
    assert run_demo(DemoOptions(tmp_path, seconds=0, chaos=True, json_path=tmp_path / "demo.json")) == 1
    assert "no worker was killed" in json.loads((tmp_path / "demo.json").read_text())["problems"][0]


def test_chaos_kills_the_worker_that_the_progress_names(world, tmp_path, progress_record, capsys):
    with Child("victim", [sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "v.log") as victim:
        world.records = [
            progress_record(pids=[1, victim.pid]),
            progress_record(state="finished", restarts=1, attempt=2),
        ]
        status = run_demo(DemoOptions(tmp_path, seconds=0, chaos=True, json_path=tmp_path / "demo.json"))
        assert victim.exit_status() == -9
    assert status == 0
    assert json.loads((tmp_path / "demo.json").read_text())["killed_pid"] == victim.pid
    assert f"CHAOS: SIGKILL to worker 1 (pid {victim.pid})" in capsys.readouterr().out


def test_a_trainer_that_fails_is_told_with_its_log_and_everything_stops(world, tmp_path):
    world.status = 1
    with pytest.raises(ChildFailed, match=r"the trainer failed with exit status 1.*train\.log"):
        run_demo(DemoOptions(tmp_path, seconds=0, json_path=tmp_path / "demo.json"))
    assert FakeBroker.last_stopped
    written = json.loads((tmp_path / "demo.json").read_text())
    assert written["ok"] is False
    assert "the trainer failed" in written["problems"][0]


def test_a_replay_that_fails_ends_the_demo(world, tmp_path, monkeypatch):
    def replay(*arguments, **options):
        raise RuntimeError("the topic went away")

    monkeypatch.setattr("streaming.producing.replay.replay", replay)
    world.pause = "5"
    with pytest.raises(RuntimeError, match="the topic went away"):
        run_demo(DemoOptions(tmp_path, seconds=0))


def test_a_trainer_in_which_nothing_moves_is_given_up(world, tmp_path):
    world.pause = "30"
    with pytest.raises(TrainerStalled, match=r"no progress for 1 s.*train\.log.*--stall-seconds"):
        run_demo(DemoOptions(tmp_path, seconds=0, stall_s=1))


def test_a_mistyped_setting_fails_before_anything_is_made(world, tmp_path):
    with pytest.raises(Exception, match=r"train\.checkpoint_every_s"):
        run_demo(DemoOptions(tmp_path / "runs", overrides=["train.chekpoint_every_s=7"]))
    assert not (tmp_path / "runs").exists()


def test_an_existing_cluster_is_used_with_topics_of_the_runs_own(world, tmp_path, monkeypatch):
    def no_broker(*arguments, **options):
        raise AssertionError("a local broker was started")

    monkeypatch.setattr("streaming.local_broker.broker.LocalBroker", no_broker)
    options = DemoOptions(
        tmp_path,
        ["stream.bootstrap_servers=kafka.example:9092"],
        json_path=tmp_path / "demo.json",
        seconds=0,
    )
    assert run_demo(options) == 0
    assert "kafka.example:9092" in json.loads((tmp_path / "demo.json").read_text())["broker"]
    settings = (tmp_path / "latest" / "settings.yaml").read_text()
    assert "interactions_topic: freshet-demo-" in settings


def test_the_users_file_counts_less_than_the_command_line(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("stream: {bootstrap_servers: 'a:1'}\ntrain: {workers: 1, linger_s: 0.5}\n")
    options = DemoOptions(tmp_path, config_file=file, overrides=["train.linger_s=0.75"])
    assert own_bootstrap_servers(options) == "a:1"
    config = write_settings(options, tmp_path, {"seed": 9})
    assert (config.train.workers, config.train.linger_s, config.seed) == (1, 0.75, 9)
    assert own_bootstrap_servers(DemoOptions(tmp_path)) == ""


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda text: "20260101-000000")
    first, second = new_run_dir(tmp_path), new_run_dir(tmp_path)
    assert [first.name, second.name] == ["20260101-000000", "20260101-000000-1"]
    assert (tmp_path / "latest").resolve() == second


def test_the_trainers_command_is_the_verb_with_the_runs_settings(tmp_path):
    command = demo_module.trainer_child(tmp_path).command
    assert command[1:6] == ["-m", "deploy", "train", "--config", str(tmp_path / "settings.yaml")]


def test_what_was_left_by_the_last_reading_is_told_too(world, tmp_path):
    out = io.StringIO()
    display = Display(DemoView(), Terminal(file=out, width=80, soft_wrap=True))
    demo = Demo(DemoOptions(tmp_path, seconds=0), display)
    with display:
        figures = demo.run()
    assert figures.steps == 246
    assert "checkpoint committed at step 240" in out.getvalue()
