"""`freshet checkpoint audit`: what a checkpoint has used, beside the topic, read from outside."""

import json
from collections import Counter

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cluster.audit import exactly_once as accounting
from cluster.checkpoints.checkpoint import CheckpointStore
from deploy.cli import app
from tests.support.worker_runs import config_of, events, produce, train


def audit(config, out, *arguments):
    """The command's exit status, its JSON, and how many events of each user it says were used."""
    stream = config.stream
    names = ("bootstrap_servers", "interactions_topic", "items_topic", "users_topic")
    settings = [f"stream.{name}={getattr(stream, name)}" for name in names]
    files = ["--json", str(out / "audit.json"), "--users", str(out / "used.parquet")]
    command = ["checkpoint", "audit", f"storage_path={config.storage_path}", *settings, *files, *arguments]
    done = CliRunner().invoke(app, command)
    used = pq.read_table(out / "used.parquet")
    found = json.loads((out / "audit.json").read_text())
    return (
        done.exit_code,
        found,
        dict(zip(*(used[name].to_pylist() for name in ("user_id", "events")), strict=True)),
    )


@pytest.fixture
def cut(stream_factory, tmp_path):
    """A run that has stopped in the middle of 300 events, and the events."""
    stream = stream_factory(2)
    sent = events(300)
    produce(stream, sent)
    config = config_of(stream, tmp_path / "run", stop_after_rows=140)
    train(0, config)
    return config, sent


def test_events_behind_the_positions_wait_and_are_not_lost(cut, tmp_path):
    config, _ = cut
    status, found, used = audit(config, tmp_path)
    assert (status, found["exactly_once"]) == (0, True)
    assert (found["events_lost"], found["events_doubled"]) == (0, 0)
    assert found["events_waiting"] == 300 - found["events_trained"] > 0
    assert sum(used.values()) == found["events_trained"] == found["events_in_topic"]


def test_at_the_end_the_counts_of_each_user_are_those_of_the_topic(cut, tmp_path):
    config, sent = cut
    config.train.stop_after_rows = 0
    train(0, config)
    status, found, used = audit(config, tmp_path)
    assert (status, found["events_waiting"]) == (0, 0)
    assert used == Counter(sent["user_id"].to_pylist())
    older, *_ = CheckpointStore(config.checkpoint_location).names()
    status, found, _ = audit(config, tmp_path, "--name", older)
    assert (status, found["checkpoint"]) == (0, older)
    assert found["events_waiting"] > 0


def test_events_that_the_topic_does_not_hold_or_that_were_not_used_are_told_and_the_status_is_1(
    cut, stream_factory, tmp_path, monkeypatch
):
    config, sent = cut
    # Of a topic with another id nothing is counted; a broker of an earlier protocol gives none.
    monkeypatch.setattr(accounting, "current_topic_id", lambda config, topic: "")
    config.stream = stream_factory(2)
    # An event of the first user became one of another user.
    users = sent["user_id"].to_pylist()
    first, second = users[0], next(user for user in users if user != users[0])
    other = sent.to_pydict() | {"user_id": [second, *users[1:]]}
    produce(config.stream, type(sent).from_pydict(other))
    status, found, used = audit(config, tmp_path)
    assert (status, found["exactly_once"]) == (1, False)
    assert found["events_lost"] >= 1
    assert found["events_doubled"] >= 1
    assert used[first] >= 1


def test_of_a_topic_that_was_created_anew_nothing_is_said_to_be_exactly_once(cut, stream_factory, tmp_path):
    config, sent = cut
    config.stream = stream_factory(2)
    produce(config.stream, sent)
    status, found, _ = audit(config, tmp_path)
    assert (status, found["exactly_once"]) == (1, False)


def test_without_a_checkpoint_it_says_so(stream_factory, tmp_path):
    done = CliRunner().invoke(app, ["checkpoint", "audit", f"storage_path={tmp_path}"])
    assert done.exit_code == 1
    assert "no checkpoint in" in str(done.exception)


def test_a_file_of_another_format_is_refused(tmp_path):
    done = CliRunner().invoke(app, ["checkpoint", "audit", "--users", "used.txt"])
    assert "--users must end in .csv or .parquet" in str(done.exception)
