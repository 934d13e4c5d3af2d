"""The towers of a run as its settings describe them, before anything is trained or read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from cluster.config import FreshetConfig
from model.cl_epidtn import cl_epidtn
from model.config import ModelConfig
from model.precision import use_precision
from model.two_tower import TwoTower


def new_towers(config: FreshetConfig, device: torch.device) -> TwoTower:
    """Towers of these settings, as the seed makes them; draws from torch's default generator."""
    torch.manual_seed(config.seed)
    model = cl_epidtn(config.model, len(config.stream.user_attributes)).to(device)
    use_precision(model, config.precision)
    return model


def towers_to_fill(config: ModelConfig, attributes: int) -> TwoTower:
    """Towers of zeros on the CPU, whose parameters are read afterwards; draws no random numbers."""
    with _WithoutDraws():
        model = cl_epidtn(config, attributes)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    return model


class _WithoutDraws(TorchFunctionMode):
    """Leaves parameters as they are; the device "meta" would, too, but imports sympy: 1.6 s of CPU in each process."""

    _SKIPPED = frozenset({"kaiming_uniform_", "normal_", "uniform_", "xavier_uniform_", "trunc_normal_"})

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__name__", "") in self._SKIPPED:
            return args[0] if args else given["tensor"]
        return func(*args, **given)
