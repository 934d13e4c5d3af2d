"""Towers and their optimizer as safetensors, without pickle."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from cluster.checkpoints.arrays import StoredContent, read_tensors, write_tensors
from cluster.checkpoints.manifest import START_ANEW, CheckpointError
from cluster.checkpoints.part import Copies, Part, Saved
from model.attribute_columns import EarlierColumns, earlier_columns
from model.tower_optimizer import TowerOptimizer
from model.two_tower import TwoTower
from retrieval.storage.durable import FileEntry

FILE = "towers.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_log = logging.getLogger(__name__)


class TowerPart(Part):
    """The towers. All ranks have the same, so one writes.

    Args:
        model: the towers.
        optimizer: the towers'; None for an index version.
        writes: whether this rank writes them.
    """

    names = (FILE,)
    learnt = True

    def __init__(
        self, model: TwoTower, optimizer: TowerOptimizer | None = None, *, writes: bool = True
    ) -> None:
        self._model, self._optimizer, self._writes = model, optimizer, writes

    def copies(self) -> Copies:
        """See Part."""
        return (
            Copies(tensors={FILE: tower_tensors(self._model, self._optimizer)}) if self._writes else Copies()
        )

    def restore(self, saved: Saved) -> None:
        """See Part."""
        change = saved.attributes
        columns = earlier_columns(self._model, change.place_F, len(change.before)) if change.changed else {}
        load_towers(saved.file(FILE), self._model, self._optimizer, columns=columns, advice=saved.advice)

    def publish(self, folder: Path) -> None:
        """Write the parameters into an index version that is being built; `restore` reads them from there."""
        if self._writes:
            save_towers(folder, self._model, None)


def tower_tensors(model: nn.Module, optimizer: TowerOptimizer | None) -> dict[str, Tensor]:
    """Copies of the model's parameters and, if given, of AdamW's moments and step counts, on the CPU."""
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in model.state_dict().items()}
    if optimizer is not None:
        for name, parameter in model.named_parameters():
            state = optimizer.state.get(parameter, {})
            tensors |= {f"{moment}.{name}": state[moment] for moment in _MOMENTS if moment in state}
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def save_towers(directory: Path, model: nn.Module, optimizer: TowerOptimizer | None) -> FileEntry:
    """Write them into a folder."""
    return write_tensors(directory / FILE, tower_tensors(model, optimizer))


def load_towers(
    file: Path | StoredContent,
    model: nn.Module,
    optimizer: TowerOptimizer | None = None,
    *,
    columns: Mapping[str, EarlierColumns] = MappingProxyType({}),
    advice: str = START_ANEW,
) -> None:
    """Read what `save_towers` wrote.

    A parameter that is missing in the file belongs to a new feature. It keeps its initial value, and a message is
    logged. New columns of a weight also keep their initial values; their moments are zero.

    Args:
        file: safetensors.
        model: gets the parameters.
        optimizer: gets the moments.
        columns: by parameter, the arrangement of its columns in the file.
        advice: what else can be done if shapes differ.
    Raises:
        CheckpointError: a parameter has another shape, or is not in the model; names the first one.
    """
    tensors = read_tensors(file)
    own = model.state_dict()
    saved = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    for name in sorted(saved):
        want, have = _earlier_shape(own, name, columns), _shape(saved, name)
        if want != have:
            raise CheckpointError(
                f"{file}: parameter {name} has shape {have}, but the settings `model.*` ask for {want}; "
                f"set them back or {advice}"
            )
    fresh = sorted(own.keys() - saved.keys())
    if fresh:
        _log.warning("%s has nothing for %s: new, so it starts fresh", file, ", ".join(fresh))
    for name in columns.keys() & saved.keys():
        saved[name] = columns[name].carried(saved[name], own[name])
    model.load_state_dict(saved, strict=False)
    if optimizer is None:
        return
    for name, parameter in model.named_parameters():
        state = {m: tensors[f"{m}.{name}"] for m in _MOMENTS if f"{m}.{name}" in tensors}
        if state:
            step = state.pop("step")
            if name in columns:
                zero = torch.zeros_like(parameter)
                state = {m: columns[name].carried(t, zero) for m, t in state.items()}
            optimizer.state[parameter] = {
                "step": step,
                **{m: t.to(parameter.device) for m, t in state.items()},
            }


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


def _earlier_shape(
    own: Mapping[str, Tensor], name: str, columns: Mapping[str, EarlierColumns]
) -> tuple[int, ...] | None:
    """The shape that the settings require, with the columns that the file should have."""
    if name not in columns:
        return _shape(own, name)
    return (*own[name].shape[:-1], columns[name].width)
