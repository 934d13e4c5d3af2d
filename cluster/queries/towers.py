"""The towers of a run as its settings describe them, before anything is trained or read."""

from __future__ import annotations

import torch

from cluster.config import FreshetConfig
from model.cl_epidtn import cl_epidtn
from model.precision import use_precision
from model.two_tower import TwoTower


def new_towers(config: FreshetConfig, device: torch.device) -> TwoTower:
    """Towers of these settings, as the seed makes them; draws from torch's default generator."""
    torch.manual_seed(config.seed)
    model = cl_epidtn(config.model, len(config.stream.user_attributes)).to(device)
    use_precision(model, config.precision)
    return model
