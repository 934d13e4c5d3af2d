"""The one `device` setting, resolved where the work happens."""

from __future__ import annotations

from typing import Literal

import torch


def resolve_device(device: Literal["auto", "cpu", "cuda"], local_rank: int = 0) -> torch.device:
    """The torch device of a rank.

    Raises:
        ValueError: `device=cuda` on a machine without CUDA.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ValueError(
            "device is 'cuda', but torch finds no CUDA device here; set device=auto or device=cpu"
        )
    if device == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def process_group_backend(device: Literal["auto", "cpu", "cuda"]) -> str:
    """gloo on CPUs; on GPUs gloo for ids and NCCL for what lies on the device."""
    return "gloo" if resolve_device(device).type == "cpu" else "cpu:gloo,cuda:nccl"
