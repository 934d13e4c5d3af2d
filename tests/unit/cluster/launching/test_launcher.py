"""What the launcher requests from Ray Train, and how long it keeps restarting."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.train
import torch.distributed as dist

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.checkpoints.claim import StorageInUse, claimed_by_run
from cluster.checkpoints.hold import Holds
from cluster.config import FreshetConfig, TrainConfig
from cluster.launching import launcher
from cluster.launching.launcher import (
    ControllerLost,
    TrainingStopped,
    _controller_named,
    _scaling,
    run_refresh,
    run_training,
)
from cluster.launching.rank import train_on_rank
from cluster.launching.stop_note import stop_reason
from deploy.command.errors import report
from retrieval.storage.opening import open_storage
from streaming.config import StreamConfig
from streaming.dead_letters.writer import DeadLettersDelayed, DeadLettersLost
from streaming.sources.kafka_source import BrokerRefused, BrokerUnavailable
from streaming.sources.parquet_source import ParquetUnusable
from tests.support.full_disk import refusing


@pytest.mark.parametrize(("workers", "asked"), [(2, 2), ("2", 2), ("2..2", 2), ("1..3", (1, 3))])
def test_one_number_is_a_group_of_that_size_and_a_range_an_elastic_one(workers, asked):
    assert _scaling(TrainConfig(workers=workers), use_gpu=False).num_workers == asked


def test_how_often_the_size_is_considered_is_a_setting():
    scaling = _scaling(TrainConfig(workers="1..3", resize_check_s=7.0), use_gpu=False)
    assert scaling.elastic_resize_monitor_interval_s == 7.0  # type: ignore[attr-defined]


class RaysRounds:
    """Instead of Ray Train: every round that is asked for commits so many checkpoints and fails, then one succeeds."""

    def __init__(self, storage, *checkpoints, stop=""):
        self._storage, self._checkpoints, self._stop = storage, checkpoints, stop
        self.failures = []

    def __call__(self, driver, config, function, extra, *, max_failures):
        self.failures.append(max_failures)
        done = sum(self._checkpoints[: len(self.failures) - 1])
        if len(self.failures) > len(self._checkpoints):
            return
        for number in range(done, done + self._checkpoints[len(self.failures) - 1]):
            (self._storage / "checkpoints" / f"step-{number:08d}").mkdir(parents=True)
        if self._stop:
            (self._storage / "stopped.json").write_text(
                json.dumps({"run_id": extra["run_id"], "reason": self._stop})
            )
        raise ray.train.WorkerGroupError("a worker died", {0: RuntimeError("SIGKILL")})


def _run(tmp_path, monkeypatch, *checkpoints, stop="", max_restarts=2):
    pq.write_table(
        pa.table({"user_id": [1], "item_id": [1], "timestamp_ms": [1]}), tmp_path / "interactions.parquet"
    )
    config = FreshetConfig(
        stream=StreamConfig(parquet=str(tmp_path / "interactions.parquet")),
        train=TrainConfig(max_restarts=max_restarts),
        storage_path=str(tmp_path / "run"),
    )
    rounds = RaysRounds(tmp_path / "run", *checkpoints, stop=stop)
    monkeypatch.setattr(launcher, "_fit", rounds)
    return rounds, config


def test_a_run_that_commits_checkpoints_between_its_failures_never_runs_out_of_restarts(
    tmp_path, monkeypatch
):
    rounds, config = _run(tmp_path, monkeypatch, 1, 3, 1, 1)
    run_training(config)
    assert rounds.failures == [2] * 5


def test_a_run_that_fails_again_and_again_at_the_same_place_is_given_up(tmp_path, monkeypatch):
    rounds, config = _run(tmp_path, monkeypatch, 2, 0, 1)
    with pytest.raises(ray.train.WorkerGroupError):
        run_training(config)
    assert rounds.failures == [2, 2]


def test_without_restarts_the_first_failure_is_the_last(tmp_path, monkeypatch):
    rounds, config = _run(tmp_path, monkeypatch, 1, max_restarts=0)
    with pytest.raises(ray.train.WorkerGroupError):
        run_training(config)
    assert rounds.failures == [0]


def test_what_a_restart_cannot_mend_is_told_in_the_workers_words_also_when_ray_gives_up(
    tmp_path, monkeypatch
):
    rounds, config = _run(tmp_path, monkeypatch, 1, stop="train.batch_events is too large")
    with pytest.raises(TrainingStopped, match=r"train\.batch_events is too large"):
        run_training(config)
    assert rounds.failures == [2]


@pytest.mark.parametrize("group_lost", [True, False])
def test_a_value_error_ends_the_run_unless_the_rank_has_lost_its_group(tmp_path, monkeypatch, group_lost):
    class Failing:
        def __init__(self, *args, **kwargs):
            pass

        def train(self):
            if group_lost:
                # As Ray does from another thread when another rank has died; torch's own error follows.
                dist.destroy_process_group()
                dist.get_world_size()
            raise ValueError("train.batch_events is too large")

    monkeypatch.setattr("cluster.training.worker.Worker", Failing)
    monkeypatch.setattr(launcher.ray.train, "get_context", lambda: SimpleNamespace(get_local_rank=lambda: 0))  # type: ignore[attr-defined]
    settings = {"config": FreshetConfig(storage_path=str(tmp_path), device="cpu"), "run_id": "one"}
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="group" if group_lost else "too large"):
            train_on_rank(settings)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    noted = stop_reason(tmp_path, "one")
    assert noted == (None if group_lost else "train.batch_events is too large")


def _committed(store, step):
    writing = store.begin(step)
    return store.commit(writing, [], {"config": {}})


def _refresh(tmp_path, monkeypatch, during):
    """A refresh whose first attempt finds that something has happened to the storage; what each attempt read."""
    config = FreshetConfig(storage_path=str(tmp_path / "run"))
    store, read = CheckpointStore(config.checkpoint_location), []
    _committed(store, 1)

    def fit(driver, config, function, extra, *, max_failures):
        read.append(Path(extra["checkpoint"]).name)
        if len(read) == 1:
            during(store)
            raise ray.train.WorkerGroupError("a worker failed", {0: RuntimeError("no such file")})
        Path(extra["report"]).write_text("{}")
        return True

    monkeypatch.setattr(launcher, "_fit", fit)
    for check in ("require_same", "require_same_towers"):
        monkeypatch.setattr(launcher, check, lambda *args: None)
    return config, read


def test_a_refresh_whose_checkpoint_was_removed_takes_the_newest_and_says_so(tmp_path, monkeypatch, caplog):
    def replace_it(store):
        _committed(store, 2)
        store.storage.remove("step-00000001")

    config, read = _refresh(tmp_path, monkeypatch, replace_it)
    assert run_refresh(config) == {}
    assert read == ["step-00000001", "step-00000002"]
    assert (
        "step-00000001 was removed while it was being read; refreshing from the newest one instead"
        in caplog.text
    )


def test_a_refresh_that_fails_for_another_reason_fails_and_its_checkpoint_was_held(tmp_path, monkeypatch):
    held = []
    config, read = _refresh(tmp_path, monkeypatch, lambda store: held.extend(Holds(store.storage).names()))
    with pytest.raises(ray.train.WorkerGroupError):
        run_refresh(config)
    assert read == held == ["step-00000001"]


def test_a_storage_whose_run_is_alive_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    rounds, config = _run(tmp_path, monkeypatch)
    with claimed_by_run(open_storage(config.checkpoint_location), "first"):
        with pytest.raises(StorageInUse, match="in use by run first"):
            run_training(config)
        assert not (tmp_path / "run" / "progress.json").exists()
        run_training(config, take_over=True)
    assert rounds.failures == [2]
    run_training(config)  # what has ended is in nobody's way


@pytest.mark.parametrize("first_elsewhere", [False, True])
def test_two_runs_with_one_storage_path_are_refused_wherever_their_checkpoints_lie(
    tmp_path, monkeypatch, first_elsewhere
):
    # They would publish into one index and write one progress.json.
    rounds, config = _run(tmp_path, monkeypatch)
    elsewhere = replace(config, train=replace(config.train, checkpoint_path=str(tmp_path / "elsewhere")))
    first, second = (elsewhere, config) if first_elsewhere else (config, elsewhere)
    meanwhile = []

    def fit(*arguments, **options):
        with pytest.raises(StorageInUse, match=r"in use by run .* settings storage_path and"):
            run_training(second)
        meanwhile.append(len(list(tmp_path.glob("elsewhere/**/*.alive"))))

    monkeypatch.setattr(launcher, "_fit", fit)
    run_training(first)
    assert meanwhile == [int(first_elsewhere)]  # the refused one has claimed nothing
    monkeypatch.setattr(launcher, "_fit", rounds)
    run_training(second)


def test_a_run_that_was_evicted_does_not_count_its_successors_checkpoints_as_its_own(tmp_path, monkeypatch):
    rounds, config = _run(tmp_path, monkeypatch, 1, 1)

    def evicted(*args, **options):
        with claimed_by_run(open_storage(config.checkpoint_location), "second", take_over=True):
            rounds(*args, **options)

    monkeypatch.setattr(launcher, "_fit", evicted)
    with pytest.raises(ray.train.WorkerGroupError):
        run_training(config)
    assert rounds.failures == [2]


def test_only_their_owner_enters_the_folder_that_ray_keeps(tmp_path, monkeypatch):
    class Trainer:
        def __init__(self, *args, **options):
            pass

        def fit(self):
            pass

    monkeypatch.setattr(launcher, "GroupTrainer", Trainer)
    monkeypatch.setattr(launcher, "_device_of_workers", lambda config: "cpu")
    driver = SimpleNamespace(run=lambda work: work())
    config = FreshetConfig(storage_path=str(tmp_path / "run"), device="cpu")
    launcher._fit(driver, config, train_on_rank, {}, max_failures=0)
    assert (tmp_path / "run" / "ray").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("error", "stops"),
    [
        (BrokerRefused("Kafka refuses for good: TopicAuthorizationFailedError"), True),
        (DeadLettersLost("1 dead letters did not reach the topic"), True),
        (DeadLettersDelayed("1 dead letters did not reach the topic"), False),
        (BrokerUnavailable("No Kafka broker answers"), False),
    ],
)
def test_what_the_brokers_refuse_for_good_ends_the_run_and_their_absence_does_not(
    tmp_path, monkeypatch, error, stops
):
    class Failing:
        def __init__(self, *args, **kwargs):
            raise error

    monkeypatch.setattr("cluster.training.worker.Worker", Failing)
    monkeypatch.setattr(launcher.ray.train, "get_context", lambda: SimpleNamespace(get_local_rank=lambda: 0))  # type: ignore[attr-defined]
    settings = {"config": FreshetConfig(storage_path=str(tmp_path), device="cpu"), "run_id": "one"}
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        with pytest.raises(type(error), match=str(error)):
            train_on_rank(settings)
    finally:
        dist.destroy_process_group()
    assert stop_reason(tmp_path, "one") == (str(error) if stops else None)


def test_on_a_full_disk_a_worker_still_says_what_it_met(tmp_path, monkeypatch, caplog):
    class Failing:
        def __init__(self, *args, **kwargs):
            raise ValueError("train.batch_events is too large")

    monkeypatch.setattr("cluster.training.worker.Worker", Failing)
    monkeypatch.setattr(launcher.ray.train, "get_context", lambda: SimpleNamespace(get_local_rank=lambda: 0))  # type: ignore[attr-defined]
    settings = {"config": FreshetConfig(storage_path=str(tmp_path / "run"), device="cpu"), "run_id": "one"}
    with refusing("mkdir", below=tmp_path), pytest.raises(ValueError, match="batch_events is too large"):
        train_on_rank(settings)
    assert stop_reason(tmp_path / "run", "one") is None
    assert "stopped.json was not written" in caplog.text


def test_files_that_are_not_there_are_told_before_ray_starts(tmp_path, monkeypatch):
    rounds, config = _run(tmp_path, monkeypatch)
    config.stream.parquet = str(tmp_path / "nowhere")
    with pytest.raises(
        ParquetUnusable, match=r"nowhere is not a Parquet file and contains none \(setting: stream\.parquet\)"
    ):
        run_training(config)
    assert rounds.failures == []


def test_files_are_found_by_workers_whose_folder_is_another(tmp_path, monkeypatch):
    _, config = _run(tmp_path, monkeypatch)
    config.stream.parquet = "interactions.parquet"
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(
        launcher, "_fit", lambda _driver, config, *_, **__: seen.append(config.stream.parquet)
    )
    run_training(config)
    assert seen == [str(tmp_path / "interactions.parquet")]


def test_the_end_of_ray_trains_controller_is_one_line_of_ours(capsys):
    with pytest.raises(ControllerLost) as lost, _controller_named():
        raise ray.exceptions.ActorDiedError
    assert report(lost.value) == 1
    said = capsys.readouterr().err
    assert said == (
        "freshet: error: Ray Train's controller is gone (ActorDiedError): start the command again, it resumes from the "
        "newest checkpoint\n"
    )
    with pytest.raises(ControllerLost), _controller_named():
        raise ray.exceptions.ActorUnavailableError("Socket closed", None)
