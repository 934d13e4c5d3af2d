"""The streaming baselines' state by item: `baselines.safetensors`. Pairs of items are a separate part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from cluster.checkpoints.arrays import read_tensors
from cluster.checkpoints.part import Copies, Part, Saved
from streaming.arrays import Int64Array

FILE = "baselines.safetensors"


class Baselines(Protocol):
    """The part of `ProgressiveValidation` that is saved and restored."""

    def baseline_arrays(self) -> Mapping[str, Int64Array]:
        """The item of each column of the baselines, and their values by column."""

    def load_baselines(self, arrays: Mapping[str, Int64Array]) -> None:
        """Restore `baseline_arrays`."""


class BaselinePart(Part):
    """Popularity counts and the columns' items. All ranks have the same, so one writes."""

    names = (FILE,)

    def __init__(self, baselines: Baselines, *, writes: bool) -> None:
        self._baselines, self._writes = baselines, writes

    def copies(self) -> Copies:
        """See Part."""
        if not self._writes:
            return Copies()
        arrays = self._baselines.baseline_arrays()
        return Copies(tensors={FILE: {name: torch.from_numpy(array) for name, array in arrays.items()}})

    def restore(self, saved: Saved) -> None:
        """See Part."""
        tensors = read_tensors(saved.file(FILE))
        self._baselines.load_baselines({name: tensor.numpy() for name, tensor in tensors.items()})
