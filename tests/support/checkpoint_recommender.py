"""A checkpoint of the stream as a recommender, ranked by the same code as one trained by `fit`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

import torch

from cluster.checkpoints.checkpoint import Checkpoint
from cluster.checkpoints.parts.catalogue import read_catalogue
from cluster.checkpoints.parts.rows import PREFIX as ROWS
from cluster.checkpoints.parts.rows import load_rows
from cluster.checkpoints.parts.towers import FILE as TOWERS
from cluster.checkpoints.parts.towers import load_towers
from cluster.config import FreshetConfig
from cluster.evaluation.config import FitConfig
from cluster.evaluation.systems.trained import TrainedRecommender
from model.cl_epidtn import cl_epidtn
from streaming.catalogue.catalogue import Catalogue

_Config = TypeVar("_Config")


def recommender_of(checkpoint: Checkpoint, device: torch.device) -> TrainedRecommender:
    """Towers, rows and catalogue of a checkpoint, written by any number of ranks, under its own settings.

    It encodes and compares; the optimizers' state is not loaded, so it cannot be trained further.

    Raises:
        CheckpointError: the files are not those of the settings in the manifest.
    """
    config = config_of(checkpoint)
    catalogue = Catalogue(config.stream)
    catalogue.apply(read_catalogue(checkpoint))
    model = cl_epidtn(config.model, len(config.stream.user_attributes))
    fit = FitConfig(row_optimizer=config.train.row_optimizer)
    recommender = TrainedRecommender(model, catalogue, config, fit, device)
    load_towers(checkpoint.file(TOWERS), recommender.model)
    load_rows(checkpoint.files(ROWS), recommender.table, 0, 1)
    return recommender


def config_of(checkpoint: Checkpoint) -> FreshetConfig:
    """The settings that a checkpoint was written under; settings that its version lacked have their defaults."""
    return _rebuilt(FreshetConfig, checkpoint.manifest["config"])


def _rebuilt(kind: type[_Config], values: Mapping[str, Any]) -> _Config:
    """The inverse of `asdict`; names that are no longer fields are left out."""
    kinds = get_type_hints(kind)
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(
        **{
            name: _rebuilt(kinds[name], value) if is_dataclass(kinds[name]) else value
            for name, value in values.items()
            if name in known
        }
    )
