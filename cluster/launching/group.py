"""The worker group as Ray Train makes it, with what a run of Freshet needs otherwise."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend
from ray.train.v2._internal.execution.callback import ControllerCallback

from cluster.launching import ray_logging


class _QuietController(ControllerCallback):
    """The controller is Ray's own process: where a cluster is joined, nothing of ours would run there."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """See ControllerCallback."""
        ray_logging.quiet()


class GroupTrainer(TorchTrainer):
    """With a controller that prints no tracebacks of its ranks, and without Ray Train's cleaner of placement groups.

    The cleaner outlives a controller that was killed, and asks the dashboard of the machine each second whether it
    lives: with the tracebacks of a refusal where that is another Ray's. Our driver ends when its controller does, and
    the placement group goes with it.
    """

    def _create_default_callbacks(self) -> list[Any]:
        # Of Ray Train V2, which is what runs; what type checkers see is V1's.
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        kept = [c for c in callbacks if type(c).__name__ != "PlacementGroupCleanerCallback"]
        return [_QuietController(), *kept]


class OneMachineTorchConfig(TorchConfig):
    """A process group whose ranks are all on this machine.

    They meet in a file. The store that they would meet at otherwise listens on all addresses of the machine.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """See BackendConfig."""
        return _OneMachineBackend


class _OneMachineBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="freshet-group-")  # as long as the group lives
        meeting = Path(self._folder.name) / "store"
        worker_group.execute(_set_torch_distributed_env_vars)
        size = len(worker_group)
        joined = [
            worker_group.execute_single_async(
                rank, _join, backend_config.backend, meeting, rank, size, backend_config.timeout_s
            )
            for rank in range(size)
        ]
        ray.get(joined)


def _join(backend: str, meeting: Path, rank: int, size: int, timeout_s: int) -> None:
    dist.init_process_group(
        backend,
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
    )
