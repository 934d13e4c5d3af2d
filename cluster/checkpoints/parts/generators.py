"""The generators that dropout draws from: `rng-rRRRRR.safetensors` of each rank. Also restored after refused steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch

from cluster.checkpoints.arrays import read_tensors
from cluster.checkpoints.part import Copies, Part, Saved

PREFIX = "rng-"
_log = logging.getLogger(__name__)


class GeneratorPart(Part):
    """torch's default generators of one rank.

    With the same number of ranks and type of device, the generators continue; otherwise they are seeded by the step, so
    that earlier numbers are not drawn again.

    Args:
        device: of the towers.
        rank: this rank.
        world: number of ranks.
        reseed: seeds the generators for the current step.
    """

    names = (PREFIX,)

    def __init__(self, device: torch.device, rank: int, world: int, reseed: Callable[[], None]) -> None:
        self._device, self._rank, self._world, self._reseed = device, rank, world, reseed

    def copies(self) -> Copies:
        """See Part."""
        return Copies(tensors={self._file: generator_states(self._device)}, told={"workers": self._world})

    def restore(self, saved: Saved) -> None:
        """See Part."""
        if int(saved.manifest["workers"]) != self._world:
            self._reseed()
            return
        states = read_tensors(saved.file(self._file))
        if drawn_on_gpu(states) == (self._device.type == "cuda"):
            restore_generators(states, self._device)
            return
        self._reseed()
        before, now = ("a GPU", "a CPU") if drawn_on_gpu(states) else ("a CPU", "a GPU")
        notice = f"resumed on {now} from a checkpoint written on {before}: dropout draws different masks from here on"
        saved.notices.append(notice)
        if self._rank == 0:
            _log.info("%s: %s", saved.checkpoint.location, notice)

    @property
    def _file(self) -> str:
        return f"{PREFIX}r{self._rank:05d}.safetensors"


def seed_dropout(seed: int, rank: int, step: int = 0) -> None:
    """Dropout differs between ranks, and between runs that start at different steps."""
    torch.manual_seed(seed + 7919 * (rank + 1) + 1_000_003 * step)


def generator_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Copies of the states of torch's default generators, by name."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def drawn_on_gpu(states: Mapping[str, torch.Tensor]) -> bool:
    """Whether dropout drew from a GPU's generator when these states were saved."""
    return "cuda" in states


def restore_generators(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Restore torch's default generators; one without a saved state is not changed."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
