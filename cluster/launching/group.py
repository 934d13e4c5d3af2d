"""Ray Train's worker group, adapted to the needs of a run."""

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
    """Configures the controller, a process of Ray's, where no code of ours would run on a joined cluster."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """See ControllerCallback."""
        ray_logging.quiet()


class GroupTrainer(TorchTrainer):
    """A trainer whose controller prints no tracebacks of ranks, without Ray Train's cleaner of placement groups.

    The cleaner outlives a killed controller and asks the machine's dashboard each second whether the controller is
    alive; if that dashboard belongs to another Ray, each refusal prints a traceback. Our driver ends when its
    controller does, which removes the placement group.
    """

    def _create_default_callbacks(self) -> list[Any]:
        # Ray Train V2's, which is used at run time; type checkers see V1's.
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        kept = [c for c in callbacks if type(c).__name__ != "PlacementGroupCleanerCallback"]
        return [_QuietController(), *kept]


class OneMachineTorchConfig(TorchConfig):
    """A process group whose ranks are all on this machine.

    The ranks rendezvous in a file, because the default store listens on all addresses of the machine.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """See BackendConfig."""
        return _OneMachineBackend


class _OneMachineBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="freshet-group-")  # as long as the group exists
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
