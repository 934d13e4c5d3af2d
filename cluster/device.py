"""The one `device` setting, resolved where the work happens."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

# torch takes seconds to import and is imported where it is used: a driver asks only for `device_of_group`.
_log = logging.getLogger(__name__)


def resolve_device(device: Literal["auto", "cpu", "cuda"], local_rank: int = 0) -> torch.device:
    """The torch device of a rank.

    Raises:
        ValueError: `device=cuda` on a machine without CUDA.
    """
    import torch

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ValueError(
            "device is 'cuda', but torch finds no CUDA device here; set device=auto or device=cpu"
        )
    if device == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def compute_deterministically(device: torch.device) -> None:
    """Let every operation of this process give the same bits for the same input; on CPUs it does so anyway.

    Without it the backward pass of an embedding with more than 3,072 indices differs from run to run (H200,
    torch 2.11), and a resumed run would not be the undisturbed one.
    """
    if device.type != "cuda":
        return
    import torch
    from torch.utils import deterministic

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch refuses matrix products without it
    torch.use_deterministic_algorithms(True)
    # It would only cost time.
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def device_of_group(
    device: Literal["auto", "cpu", "cuda"], workers: int, gpus: float, *, may_grow: bool = False
) -> Literal["cpu", "cuda"]:
    """What every worker of a group is given, by what the cluster has: the driver's own machine may have no GPU.

    Args:
        device: the setting.
        workers: the fewest that the group may have; each gets a GPU of its own.
        gpus: of the cluster.
        may_grow: nodes may still come, so `device=cuda` waits for them.
    Raises:
        ValueError: `device=cuda` with fewer GPUs than workers: Ray would wait for them forever.
    """
    if device == "cuda" and may_grow:
        return "cuda"
    if device == "cuda" and gpus < workers:
        raise ValueError(
            f"device is 'cuda' and each of {workers} workers needs a GPU, but the cluster has {gpus:g}; "
            "set train.workers to that many, or device=auto or device=cpu"
        )
    if device == "auto" and 0 < gpus < workers:
        _log.warning(
            "the cluster has %g GPUs, fewer than train.workers=%d: all train on CPUs; set train.workers=%d for GPUs",
            *(gpus, workers, int(gpus)),
        )
    return "cuda" if device != "cpu" and gpus >= workers else "cpu"


def process_group_backend(device: Literal["cpu", "cuda"]) -> str:
    """gloo on CPUs; on GPUs gloo for ids and NCCL for what lies on the device."""
    return "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
