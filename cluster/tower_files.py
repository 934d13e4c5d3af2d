"""Towers and their optimizer as safetensors, without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cluster.checkpoint import START_ANEW, CheckpointError, read_tensors, write_tensors
from retrieval.durable_files import FileEntry

FILE = "towers.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_towers(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> FileEntry:
    """Write the model's parameters and, where given, AdamW's moments and step counts."""
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in model.state_dict().items()}
    if optimizer is not None:
        for name, parameter in model.named_parameters():
            for moment in _MOMENTS:
                if moment in optimizer.state[parameter]:
                    tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    return write_tensors(directory / FILE, tensors)


def load_towers(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    advice: str = START_ANEW,
) -> None:
    """Read what `save_towers` wrote; `advice` is what else can be done about shapes that differ.

    Raises:
        CheckpointError: the file's shapes are not this model's; names the first parameter and both shapes.
    """
    tensors = read_tensors(path)
    own = model.state_dict()
    saved = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    for name in sorted(own.keys() | saved.keys()):
        want, have = _shape(own, name), _shape(saved, name)
        if want != have:
            raise CheckpointError(
                f"{path}: parameter {name} has shape {have}, but the settings `model.*` ask for {want}; "
                f"set them back or {advice}"
            )
    model.load_state_dict(saved)
    if optimizer is None:
        return
    for name, parameter in model.named_parameters():
        state = {m: tensors[f"{m}.{name}"] for m in _MOMENTS if f"{m}.{name}" in tensors}
        if state:
            step = state.pop("step")
            optimizer.state[parameter] = {
                "step": step,
                **{m: t.to(parameter.device) for m, t in state.items()},
            }


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
