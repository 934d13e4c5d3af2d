"""Ray Train's worker group, adapted to the needs of a run.

Ray Train's controller, a process of its own, imports this module. The module does not import torch, which takes two
seconds of CPU time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import state, worker_group
from ray.train.v2._internal.util import TrainingFramework
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cluster.launching import ray_logging

# The cleaner outlives a killed controller and asks the machine's dashboard each second whether the controller is alive;
# if that dashboard belongs to another Ray, each refusal prints a traceback. Our driver ends when its controller does,
# which removes the placement group. The other callback starts a process that distributes Ray Data sets; a run has none.
_UNUSED_CALLBACKS = ("PlacementGroupCleanerCallback", "DatasetsCallback")
_LEAVE_S = 30.0


class _QuietController(ControllerCallback):
    """Configures the controller, a process of Ray's, where no code of ours would run on a joined cluster."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """See ControllerCallback."""
        ray_logging.quiet()


class _WithoutMeetingPlace(ControllerCallback):
    """Starts no actor where ranks meet to report: they do not report, and meet in torch's process group.

    The actor would be a further process per group, which takes two and a half seconds of CPU time.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """See ControllerCallback."""
        setattr(worker_group, "SynchronizationActor", _NoActor)  # noqa: B010 - a type is no variable
        setattr(state, "_shutdown_sync_actor", lambda actor: None)  # noqa: B010


class _NoActor:
    @classmethod
    def options(cls, **settings: Any) -> type[_NoActor]:
        return cls

    @classmethod
    def remote(cls, **settings: Any) -> _NoActor:
        return cls()


class GroupTrainer(DataParallelTrainer):
    """A trainer whose controller prints no tracebacks of ranks, without the processes that a run does not use.

    With a OneMachineConfig, its ranks must not call `ray.train.report`.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        ours: list[Any] = [_QuietController()]
        if isinstance(self.backend_config, OneMachineConfig):
            ours.append(_WithoutMeetingPlace())
        return [*ours, *(c for c in callbacks if type(c).__name__ not in _UNUSED_CALLBACKS)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        if isinstance(self.backend_config, OneMachineConfig):
            policy = arguments["scaling_policy"]
            if isinstance(policy, FixedScalingPolicy):
                arguments["scaling_policy"] = _SizeOfOneMachine(policy.scaling_config)
        return super()._initialize_and_run_controller(**arguments)


class _SizeOfOneMachine(FixedScalingPolicy):
    """Requests nothing from an autoscaler: the machine does not grow, and the coordinator of requests is a process."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """See ControllerCallback."""

    def _maybe_send_resource_request(self) -> None:
        pass


@dataclass
class OneMachineConfig(BackendConfig):
    """A process group of torch whose ranks are all on this machine.

    The ranks rendezvous in a file, because the default store listens on all addresses of the machine.
    """

    backend: str = "gloo"
    timeout_s: int = 1800

    @property
    def backend_cls(self) -> type[Backend]:
        """See BackendConfig."""
        return _OneMachineBackend

    @property
    def train_func_context(self) -> Callable[[], Any]:
        """See BackendConfig. The driver reads it, and sends it to the ranks."""
        return _with_torch

    @property
    def framework(self) -> TrainingFramework:
        """See BackendConfig."""
        return TrainingFramework.TORCH


class _OneMachineBackend(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="freshet-group-")  # as long as the group exists
        meeting = Path(self._folder.name) / "store"
        size = len(worker_group)
        joined = [
            worker_group.execute_single_async(
                rank, _join, backend_config.backend, meeting, rank, size, backend_config.timeout_s
            )
            for rank in range(size)
        ]
        ray.get(joined)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        left = worker_group.execute_async(_leave, len(worker_group) > 1)
        with suppress(ray.exceptions.GetTimeoutError):  # Ray Train kills them next
            ray.get(left, timeout=_LEAVE_S)


@contextmanager
def _with_torch() -> Iterator[None]:
    from ray.train.torch.config import TorchConfigContextManager

    with TorchConfigContextManager():
        yield


def _join(backend: str, meeting: Path, rank: int, size: int, timeout_s: int) -> None:
    import torch.distributed as dist
    from ray.train.torch.config import _set_torch_distributed_env_vars

    _set_torch_distributed_env_vars()  # type: ignore[no-untyped-call]
    dist.init_process_group(
        backend,
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
    )


def _leave(destroy_process_group: bool) -> None:
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=destroy_process_group)  # type: ignore[no-untyped-call]
