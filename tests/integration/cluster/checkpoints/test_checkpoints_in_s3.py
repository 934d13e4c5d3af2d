"""Checkpoints in an object store: a real S3 server (moto) on a free port of loopback, through pyarrow.fs."""

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from cluster.audit.exactly_once import verify_exactly_once
from cluster.audit.state import read_state
from cluster.checkpoints import claim
from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.checkpoints.claim import StorageInUse, StorageTaken, claimed_by_run, join
from cluster.checkpoints.hold import holding
from cluster.checkpoints.writing import FullPolicy
from cluster.collectives import Collectives
from cluster.config import TrainConfig
from cluster.training.refresh import refresh_from
from cluster.training.state.starting_point import find_starting_point
from cluster.training.state.worker_state import checkpointer_of
from deploy.cli import app
from deploy.command.preflight import NotACheckpoint, check_checkpoint
from retrieval.storage.base import StorageLocationError, nothing
from retrieval.storage.opening import open_storage
from tests.support.checkpointing import start_new_chain
from tests.support.ranks import run_on_ranks
from tests.support.s3_server import SECRET, objects_in, s3_bucket
from tests.support.state_digests import digests
from tests.support.unit_runs import small_config, small_run, train_steps
from tests.support.worker_runs import config_of, events, produce, train


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """`s3://…` of an empty bucket."""
    with s3_bucket(tmp_path_factory.mktemp("s3")) as uri:
        yield uri


def test_a_run_goes_on_from_a_chain_in_s3_and_old_chains_are_removed_there(bucket):
    store = CheckpointStore(f"{bucket}/whole", keep=1)
    run = small_run(dropout=0.3)
    checkpointer = checkpointer_of(run, store, Collectives())
    for _ in range(2):
        train_steps(run, 1)
        delta = checkpointer.finish(run.step)
    assert [link.manifest["kind"] for link in store.newest().links] == ["full", "delta"]
    torch.manual_seed(5)
    resumed = small_run(store.newest(), dropout=0.3)
    again = checkpointer_of(resumed, CheckpointStore(f"{bucket}/other"), Collectives())
    assert digests(read_state(again.finish(resumed.step))) == digests(read_state(delta))
    start_new_chain(checkpointer)
    train_steps(run, 1)
    last = checkpointer.finish(run.step)
    checkpointer.close()
    assert store.names() == [last.name]
    assert {name.split("/")[0] for name in objects_in(f"{bucket}/whole")[0]} == {last.name}


@pytest.mark.parametrize("step", ["write", "manifest", "rename", "renamed"])
def test_in_s3_the_manifest_is_the_commit_and_what_a_crash_leaves_is_swept(bucket, step):
    class Cut(BaseException):
        pass

    def cut(name):
        if name == step:
            raise Cut

    where = f"{bucket}/cut-{step}"
    run = small_run()
    train_steps(run, 1)
    first = checkpointer_of(run, CheckpointStore(where), Collectives()).finish(run.step)
    train_steps(run, 1)
    with pytest.raises(Cut):
        checkpointer_of(run, CheckpointStore(where, at=cut), Collectives(), at=cut).finish(run.step)
    found = CheckpointStore(where).newest()
    assert (found.name == first.name) is (step != "renamed")
    garbage = {name.split("/")[0] for name in objects_in(where)[0]} - set(CheckpointStore(where).names())
    assert bool(garbage) is (step in ("manifest", "rename"))
    train_steps(run, 1)
    checkpointer_of(run, CheckpointStore(where), Collectives()).finish(run.step)
    assert {name.split("/")[0] for name in objects_in(where)[0]} == set(CheckpointStore(where).names())


def test_in_s3_a_checkpoint_can_begin_while_the_writing_thread_removes_old_ones(bucket):
    storage = open_storage(f"{bucket}/swept")
    names = [f"step-{step:08d}" for step in range(12)]
    for name in names:
        with storage.writing(name, "towers.safetensors") as sink:
            sink.write(b"something")
        storage.commit(name, b"{}", nothing)
    with ThreadPoolExecutor(1) as writing:
        removing = writing.submit(lambda: [storage.remove(name) for name in names])
        begun = 0
        while not removing.done():
            storage.begin("step-00000099")
            begun += 1
        removing.result()
    assert begun > 1
    assert storage.names() == []
    assert not objects_in(f"{bucket}/swept")[0]


def test_in_s3_what_somebody_else_has_just_removed_is_removed(bucket):
    class SomebodyIsFirst:
        def __init__(self, filesystem):
            self.filesystem, self.removed = filesystem, []

        def __getattr__(self, name):
            return getattr(self.filesystem, name)

        def delete_dir(self, path):
            self.filesystem.delete_dir(path)
            self.removed.append(path)
            self.filesystem.delete_dir(path)

    storage = open_storage(f"{bucket}/raced")
    with storage.writing("step-00000001", "towers.safetensors") as sink:
        sink.write(b"something")
    storage._files = SomebodyIsFirst(storage._files)  # type: ignore[attr-defined]
    storage.begin("step-00000002")
    assert storage._files.removed == ["runs/raced/step-00000001"]  # type: ignore[attr-defined]
    assert not objects_in(f"{bucket}/raced")[0]


def test_a_damaged_object_is_named_and_the_checkpoint_before_it_used_also_as_a_starting_point(bucket, caplog):
    where = f"{bucket}/damaged"
    run, store = small_run(), CheckpointStore(where)
    names = []
    checkpointer = checkpointer_of(run, store, Collectives())
    for steps in (1, 4):
        train_steps(run, steps)
        start_new_chain(checkpointer)
        names.append(checkpointer.finish(run.step).name)
    checkpointer.close()
    objects, filesystem = objects_in(where)
    with filesystem.open_output_stream(objects[f"{names[1]}/towers.safetensors"].path) as victim:
        victim.write(b"something else")
    with caplog.at_level(logging.ERROR):
        assert store.newest().name == names[0]
    assert f"{where}/{names[1]} is damaged: towers.safetensors has 14 bytes" in caplog.text
    config = small_config()
    config.train = TrainConfig(init_from=where)
    assert find_starting_point(config).name == names[0]
    assert SECRET not in caplog.text
    resumed = small_run(store.newest())
    again = checkpointer_of(resumed, store, Collectives(), store.newest())
    again._policy = FullPolicy(share=10.0)
    for _ in range(2):
        train_steps(resumed, 1)
        last = again.finish(resumed.step)
    again.close()
    newest = CheckpointStore(where).newest()
    assert [link.step for link in newest.links] == [1, 2, 3]
    assert newest.name == last.name
    assert {name.split("/")[0] for name in objects_in(where)[0]} == {link.name for link in newest.links}


def test_two_ranks_train_into_s3_go_on_from_there_and_the_command_line_reads_it(
    bucket, stream_config, tmp_path, monkeypatch
):
    """The whole loop, from Kafka: stopped after some rows, then by other workers to the end."""
    produce(stream_config, events(300))
    monkeypatch.setenv("FRESHET_CACHE", str(tmp_path / "cache"))
    where, index = f"{bucket}/worker", f"{bucket}/worker-index"
    on = config_of(stream_config, tmp_path / "run", checkpoint_path=where, index_path=index)
    cut = replace(on, train=replace(on.train, stop_after_rows=150))
    stopped, ended = run_on_ranks(train, 2, cut, on)[0]
    assert 150 <= stopped["events_trained"] < 300
    assert ended["events_trained"] == 300
    assert verify_exactly_once(on).exactly_once
    # There is no more than the claim on what else a run writes to its storage.
    assert not any(path.name.startswith(("step-", "v0")) for path in (tmp_path / "run").rglob("*"))

    def command(verb, *arguments):
        out = tmp_path / "out.json"
        done = CliRunner().invoke(app, [*verb.split(), *arguments, *places, "--json", str(out)])
        content = (
            out.read_text() if out.exists() else pytest.fail(f"{verb}: {done.output} {done.exception!r}")
        )
        out.unlink()
        return done.exit_code, json.loads(content)

    places = [
        f"storage_path={tmp_path / 'run'}",
        f"train.checkpoint_path={where}",
        f"train.index_path={index}",
        f"stream.bootstrap_servers={stream_config.bootstrap_servers}",
        f"stream.interactions_topic={stream_config.interactions_topic}",
    ]
    status, said = command("status")
    assert (status, said["lag_messages"], said["index_current"]) == (0, 0, ended["index"]["version"])
    assert [entry["name"] for entry in said["index_versions"]][-1] == said["index_current"]
    assert [entry["step"] for entry in said["checkpoints"]] == [stopped["step"], ended["step"]]
    assert len(command("recommend", "--history", "1,2,3", "-k", "5")[1][0]["items"]) == 5
    newest, report = f"{where}/{said['checkpoints'][-1]['name']}", tmp_path / "report.json"
    check_checkpoint(newest)
    refresh_from(on, Collectives(), torch.device("cpu"), checkpoint_path=newest, report_path=report)
    refreshed = command("status")[1]["index_current"]
    assert refreshed == json.loads(report.read_text())["version"] != said["index_current"]
    with pytest.raises(NotACheckpoint, match=rf"{where}/step-99999999 is not a checkpoint.*--checkpoint"):
        check_checkpoint(f"{where}/step-99999999")
    status, (full, delta) = command("checkpoint list")
    assert (status, full["kind"], delta["kind"], delta["parent"]) == (0, "full", "delta", full["name"])
    assert [entry["events_trained"] for entry in (full, delta)] == [stopped["events_trained"], 300]
    status, found = command("checkpoint diff", "--old", full["name"], "--new", delta["name"])
    assert (status, found["identical"], found["counters"]["events_trained"][1]) == (0, False, 300)
    assert [(r["whole"], len(r["files"]) > 8) for r in command("checkpoint verify")[1]] == [(True, True)] * 2
    objects, filesystem = objects_in(where)
    with filesystem.open_output_stream(objects[f"{full['name']}/towers.safetensors"].path) as victim:
        victim.write(b"something else")
    status, results = command("checkpoint verify")
    assert (status, [r["whole"] for r in results]) == (1, [False, False])
    assert "towers.safetensors has 14 bytes" in results[1]["problem"]


def test_credentials_in_the_location_are_refused_without_being_shown():
    for uri in (f"s3://somebody:{SECRET}@runs/x", f"s3://runs/x?secret_key={SECRET}"):
        with pytest.raises(StorageLocationError, match="AWS_SECRET_ACCESS_KEY in the environment") as refused:
            open_storage(uri)
        assert SECRET not in str(refused.value)
    with pytest.raises(StorageLocationError, match=r"nowhere://x.*train\.checkpoint_path"):
        open_storage("nowhere://x")


def test_in_s3_too_who_was_taken_over_commits_nothing(bucket):
    where = f"{bucket}/claimed"
    run, older, newer = small_run(), CheckpointStore(where), CheckpointStore(where)
    older.join("tuesday")
    checkpointer = checkpointer_of(run, older, Collectives())
    train_steps(run, 1)
    first = checkpointer.finish(run.step)
    with claimed_by_run(newer.storage, "wednesday", take_over=True):
        newer.join("wednesday")
    with pytest.raises(StorageTaken, match="run wednesday"):
        checkpointer.finish(run.step)
    checkpointer.close()
    assert newer.names() == [first.name]


def test_in_s3_too_a_run_that_is_alive_is_refused_and_one_that_died_elsewhere_is_succeeded(
    bucket, monkeypatch
):
    monkeypatch.setattr(claim, "BEAT_S", 1.0)
    monkeypatch.setattr(claim, "EXPIRY_S", 4.0)
    storage = open_storage(f"{bucket}/alive")
    with claimed_by_run(storage, "first"):
        other = json.loads(storage.notes.read("claim.json")) | {"machine": "another", "host": "elsewhere"}
        storage.notes.put("claim.json", json.dumps(other).encode())
        started = time.monotonic()
        in_use = pytest.raises(StorageInUse, match=r"in use by run first \(host elsewhere")
        with in_use, claimed_by_run(storage, "second"):
            pass
        assert time.monotonic() - started < 5.0  # with the next sign of life
    storage.notes.touch("claims/first.alive")  # as a machine that loses its power leaves it
    with claimed_by_run(storage, "second"):
        join(storage, "second").check()
        with pytest.raises(StorageTaken, match="run second"):
            join(storage, "first")
    assert storage.notes.names() == ["claims/second.group"]


def test_in_s3_too_what_is_read_is_not_removed(bucket):
    where = f"{bucket}/held"
    store, run = CheckpointStore(where, keep=1), small_run()
    checkpointer = checkpointer_of(run, store, Collectives())
    train_steps(run, 1)
    first = checkpointer.finish(run.step)
    start_new_chain(checkpointer)
    with holding(first.storage, first.name, "freshet refresh"):
        train_steps(run, 1)
        second = checkpointer.finish(run.step)
        checkpointer.close()
        assert store.names() == [first.name, second.name]
    store.prune(second)
    assert store.names() == [second.name]
    assert store.storage.notes.names() == []
