"""The states of the generators that dropout draws from, for checkpoints and for steps that are not applied."""

from __future__ import annotations

from collections.abc import Mapping

import torch


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
    """Set torch's default generators to earlier states; one without a state is left alone."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
