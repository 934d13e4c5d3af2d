"""Starts the workers as a Ray Train job, on this machine or on the cluster that Ray finds.

The driver does not import torch, which takes three seconds of CPU time; its workers do (rank.py).
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import ray
import ray.train
from ray.train.backend import BackendConfig

from cluster.checkpoints.checkpoint import Checkpoint, CheckpointStore, open_checkpoint
from cluster.checkpoints.claim import Owner, claimed_by_run
from cluster.checkpoints.hold import holding
from cluster.checkpoints.manifest import CheckpointError
from cluster.config import FreshetConfig, TrainConfig, worker_range
from cluster.device import device_of_group, process_group_backend
from cluster.launching import ray_logging
from cluster.launching.driver import Driver
from cluster.launching.group import GroupTrainer, OneMachineConfig
from cluster.launching.rank import refresh_on_rank, train_on_rank
from cluster.launching.ray_instance import RayInstance
from cluster.launching.stop_note import stop_reason
from cluster.observability.progress_file import ProgressFile
from cluster.stop_request import StopRequest
from cluster.training.state.compatibility import require_resumable, require_same, require_same_towers
from cluster.training.state.starting_point import find_starting_point
from retrieval.storage.base import StorageLocationError
from retrieval.storage.durable import make_private
from retrieval.storage.location import absolute_location
from retrieval.storage.opening import open_storage
from streaming.catalogue.inputs import require_inputs

# Chosen by the time from SIGKILL to resumption; the default polls every 2 s.
_RAY_TRAIN_ENV = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",
}
# Ray Train's view of the cluster's resources is up to 20 s old. With a range of workers, a group that it started for a
# node that is gone is abandoned after this and resized; the default is 60 s.
_RAY_TRAIN_ELASTIC_ENV = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}
# No preemption of this machine is announced, and the watcher is a process of 200 MB per group.
_RAY_TRAIN_ONE_MACHINE_ENV = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
# glibc creates up to eight heaps per core, and memory freed by a thread stays in its heap. Each version is built by new
# threads, and all heaps together grew by 3 kB per item (tests/benchmarks/worker_memory.py). See mallopt(3).
_FEW_HEAPS_ENV = {"MALLOC_ARENA_MAX": os.environ.get("MALLOC_ARENA_MAX", "2")}
_ENDED = ("stopped", "finished")
_FAILED_WHILE_STOPPING = (
    "stopped, but the workers failed before the last checkpoint: the next run resumes from the one before it"
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSummary:
    """The run's summary at its end: the last `progress.json`."""

    progress: Mapping[str, Any] = field(default_factory=dict)


class ControllerLost(RuntimeError):
    """Ray Train's controller, which restarts the workers, has died."""


class TrainingStopped(RuntimeError):
    """A worker had a problem that a restart cannot solve; the message is the worker's."""


def run_training(
    config: FreshetConfig, stop: StopRequest | None = None, *, take_over: bool = False
) -> TrainingSummary:
    """Train until the stream ends (`train.bounded`, `train.stop_after_rows`) or a stop is requested.

    On a live topic it trains indefinitely. Configuration errors are raised before Ray starts. A stop ends the current
    step and commits a last checkpoint; the summary's `state` is then `stopped`.

    Args:
        config: settings.
        take_over: evict the run that writes to this storage, alive or not.
    Raises:
        cluster.checkpoints.claim.StorageInUse: another run is alive on this storage.
        cluster.checkpoints.claim.StorageNotClaimed: the storage cannot be written.
        streaming.sources.kafka_source.BrokerUnavailable, TopicMissing, ParquetUnusable: nothing to read from.
        CheckpointError: `storage_path` holds checkpoints, but none that verifies; or it holds none, and
            `train.init_from` names nothing that this run can start from; or the newest was trained with other sizes.
        TrainingStopped: a worker reported that a restart cannot help, or a stop could not commit its checkpoint.
        StopTimedOut: a stop was requested, but the workers did not end within `train.stop_within_s`.
        HeadLost, ControllerLost: Ray's head is gone, or Ray Train's controller.
        ray.train.TrainingFailedError: the workers failed more than `train.max_restarts` times without a new checkpoint.
    """
    config, stop = _with_absolute_paths(config), stop or StopRequest()
    require_inputs(config.stream)
    storage, run_id = _storage(config), uuid.uuid4().hex
    if take_over:
        _refuse_what_cannot_start(config)  # a run that cannot start must not evict another
    with ExitStack() as claims:
        for place in config.claimed_locations:
            claims.enter_context(claimed_by_run(open_storage(place), run_id, take_over=take_over))
        _refuse_what_cannot_start(config)
        progress = ProgressFile(storage)
        progress.write({"run_id": run_id, "attempt": 0, "restarts": 0, "state": "starting"})
        _fit_while_it_moves_on(config, storage, run_id, stop)
        return TrainingSummary(_last_word(progress, stop))


def _last_word(progress: ProgressFile, stop: StopRequest) -> dict[str, Any]:
    """The summary of the workers, or of the driver if it stopped them before they could write one."""
    last = progress.read() or {}
    if stop.asked and last.get("state") not in _ENDED:
        unsaved = last.get("state") == "training"
        last = {**last, "state": "stopped", "stop_error": _FAILED_WHILE_STOPPING if unsaved else ""}
        progress.write(last)
    if last.get("stop_error"):
        raise TrainingStopped(str(last["stop_error"]))
    return last


def _refuse_what_cannot_start(config: FreshetConfig) -> None:
    newest = CheckpointStore(config.checkpoint_location).newest()
    if newest is None:
        find_starting_point(config)
    else:
        require_resumable(newest, config)


def _fit_while_it_moves_on(config: FreshetConfig, storage: Path, run_id: str, stop: StopRequest) -> None:
    """Restart a run that Ray Train gave up on if it has committed a new checkpoint meanwhile.

    Ray Train counts failures over the whole run, and a run without an end has some every month. So `train.max_restarts`
    limits failures without a new checkpoint between them.
    """
    store, restarts = CheckpointStore(config.checkpoint_location), config.train.max_restarts

    def state() -> str:
        return str((ProgressFile(storage).read() or {}).get("state"))

    while not stop.asked:
        before = store.names()[-1:]
        driver = Driver(
            run_id,
            lambda: _start_ray(config),
            stop,
            stop_within_s=config.train.stop_within_s,
            can_finish=lambda: state() != "starting",
            stopped=lambda: state() in _ENDED,
        )
        failure: ray.train.TrainingFailedError | None = None
        try:
            _fit(driver, config, train_on_rank, {"run_id": run_id}, max_failures=restarts)
        except ray.train.TrainingFailedError as error:
            failure = error
        stopped = stop_reason(storage, run_id)
        if stopped is not None:
            raise TrainingStopped(stopped) from failure
        if failure is None or stop.asked:
            return
        owner = Owner.found_in(store.storage)
        evicted = owner is not None and owner.run_id != run_id  # then the new checkpoints are its successor's
        if evicted or restarts == 0 or store.names()[-1:] == before:
            raise failure
        _log.warning(
            "the workers failed %d times but made progress in between, so they are restarted", restarts + 1
        )


def _with_absolute_paths(config: FreshetConfig) -> FreshetConfig:
    """Make paths absolute, because workers run in other folders."""
    train = replace(
        config.train,
        init_from=absolute_location(config.train.init_from),
        checkpoint_path=absolute_location(config.train.checkpoint_path),
        index_path=absolute_location(config.train.index_path),
    )
    return replace(
        config,
        train=train,
        stream=replace(config.stream, parquet=absolute_location(config.stream.parquet)),
        storage_path=absolute_location(config.storage_path),
    )


def run_refresh(
    config: FreshetConfig, checkpoint: str | None = None, stop: StopRequest | None = None
) -> dict[str, Any] | None:
    """Re-embed the whole catalogue from a checkpoint (by default the newest) across the workers, and publish.

    Returns:
        What was published; None if a stop was requested before.
    Raises:
        CheckpointError: there is no such checkpoint.
        HeadLost, ControllerLost: Ray's head is gone, or Ray Train's controller.
    """
    config = _with_absolute_paths(config)
    _storage(config)
    while True:
        opened = open_checkpoint(absolute_location(checkpoint)) if checkpoint is not None else _newest(config)
        require_same(opened, config, ["train.row_optimizer"], "take another checkpoint")
        require_same_towers(opened, config, "take another checkpoint")
        with holding(opened.storage, opened.name, "freshet refresh"):
            try:
                return _refresh(config, opened, stop or StopRequest())
            except ray.train.TrainingFailedError:
                if checkpoint is not None or not _is_removed(opened):
                    raise
        _log.warning(
            "%s was removed while it was being read; refreshing from the newest one instead", opened.location
        )


def _refresh(config: FreshetConfig, opened: Checkpoint, stop: StopRequest) -> dict[str, Any] | None:
    run_id = uuid.uuid4().hex
    report_path = Path(config.storage_path) / f".refresh-{run_id}.json"
    extra = {"checkpoint": opened.location, "report": str(report_path)}
    # A refresh leaves nothing but the version, which goes live in its last step.
    driver = Driver(
        run_id,
        lambda: _start_ray(config),
        stop,
        stop_within_s=config.train.stop_within_s,
        can_finish=lambda: False,
        stopped=lambda: False,
    )
    ended = _fit(driver, config, refresh_on_rank, extra, max_failures=config.train.max_restarts)
    return _take_report(report_path) if ended else None


def _is_removed(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint is gone: removed by an earlier version of Freshet, or before the hold was seen."""
    return not {link.name for link in checkpoint.links} <= set(checkpoint.storage.names())


def _newest(config: FreshetConfig) -> Checkpoint:
    newest = CheckpointStore(config.checkpoint_location).newest()
    if newest is None:
        raise CheckpointError(
            f"no checkpoint under {config.checkpoint_location} to refresh from; "
            "train first, or set storage_path or --checkpoint"
        )
    return newest


def _take_report(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(path.read_text())
    path.unlink()
    return report


def _storage(config: FreshetConfig) -> Path:
    if "://" in config.storage_path:
        raise StorageLocationError(
            f"storage_path={config.storage_path} is an address, but must be a folder; checkpoints and versions "
            "in an object store have their own settings: train.checkpoint_path, train.index_path"
        )
    storage = Path(config.storage_path)
    for path in (storage, storage / "checkpoints"):
        if path.exists() and not path.is_dir():
            raise CheckpointError(f"{path} is a file, not a folder of checkpoints (setting: storage_path)")
    return storage


def _fit(
    driver: Driver,
    config: FreshetConfig,
    function: Callable[[dict[str, Any]], None],
    extra: Mapping[str, str],
    *,
    max_failures: int,
) -> bool:
    """Run the work; returns what `Driver.run` does."""
    train = config.train
    joins = bool(os.environ.get("RAY_ADDRESS"))
    wanted = _RAY_TRAIN_ENV | (_RAY_TRAIN_ELASTIC_ENV if _is_elastic(train) else {})
    wanted |= {} if joins else _RAY_TRAIN_ONE_MACHINE_ENV
    os.environ.update({key: os.environ.get(key, value) for key, value in wanted.items()})
    make_private(Path(config.storage_path) / "ray")  # Ray would create it readable for all users

    group: Any = _group_config_type(joins)

    def fit() -> None:
        device = _device_of_workers(config)
        with _controller_named():
            GroupTrainer(
                function,
                train_loop_config={"config": replace(config, device=device), "reports": joins, **extra},
                scaling_config=_scaling(train, device == "cuda"),
                backend_config=group(
                    backend=process_group_backend(device), timeout_s=int(train.collective_timeout_s)
                ),
                run_config=ray.train.RunConfig(
                    storage_path=str(Path(config.storage_path) / "ray"),
                    failure_config=ray.train.FailureConfig(max_failures=max_failures),
                ),
            ).fit()

    return driver.run(fit)


def _group_config_type(joins: bool) -> type[BackendConfig]:
    """Of torch's process group. Importing torch once Ray has been joined ends the process: MKL finds no libraries."""
    if not joins:
        return OneMachineConfig
    from ray.train.torch import TorchConfig

    return TorchConfig


@contextmanager
def _controller_named() -> Iterator[None]:
    """Replace Ray's message about its controller's end, which fills a screen and names no remedy."""
    try:
        yield
    except ray.exceptions.RayActorError as error:
        raise ControllerLost(
            f"Ray Train's controller is gone ({type(error).__name__}): start the command again, it resumes from the "
            "newest checkpoint"
        ) from error


def _device_of_workers(config: FreshetConfig) -> Literal["cpu", "cuda"]:
    """Whether workers use GPUs, decided once for all of them from Ray's resources; this machine may have no GPU."""
    return device_of_group(
        config.device,
        worker_range(config.train.workers)[0],
        ray.cluster_resources().get("GPU", 0.0),  # type: ignore[no-untyped-call]
        may_grow=bool(os.environ.get("RAY_ADDRESS")),
    )


def _is_elastic(train: TrainConfig) -> bool:
    fewest, most = worker_range(train.workers)
    return fewest < most


def _scaling(train: TrainConfig, use_gpu: bool) -> ray.train.ScalingConfig:
    sizes = worker_range(train.workers)
    # Of Ray Train V2, which is what runs; what type checkers see is V1's.
    arguments: dict[str, Any] = {
        "num_workers": sizes if _is_elastic(train) else sizes[0],
        "elastic_resize_monitor_interval_s": train.resize_check_s,
    }
    return ray.train.ScalingConfig(
        **arguments,
        use_gpu=use_gpu,
        resources_per_worker={"CPU": train.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
    )


def _start_ray(config: FreshetConfig) -> RayInstance:
    """Join the cluster that RAY_ADDRESS names, or start one here, unless this process has one already."""
    if ray.is_initialized():
        return RayInstance.present()
    threads = str(config.train.threads_per_worker)
    variables = {**_RAY_TRAIN_ENV, **_FEW_HEAPS_ENV, "OMP_NUM_THREADS": threads}
    environment: dict[str, Any] = {"env_vars": variables}
    if os.environ.get("RAY_ADDRESS"):
        return RayInstance.join(runtime_env=environment, log_to_driver=True)
    wanted = worker_range(config.train.workers)[0] * config.train.cpus_per_worker
    environment["worker_process_setup_hook"] = ray_logging.SETUP_HOOK
    return RayInstance.start(int(wanted + 0.999), runtime_env=environment, log_to_driver=True)
