"""Checks from its manifest, before it is read, that a checkpoint's towers and rows fit the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from cluster.checkpoints.checkpoint import Checkpoint
from cluster.checkpoints.manifest import START_ANEW, CheckpointError
from cluster.config import FreshetConfig
from model.config import ModelConfig

Shapes = Mapping[str, tuple[int, ...]]


def require_resumable(checkpoint: Checkpoint, config: FreshetConfig) -> None:
    """Check that a run with these settings can resume from one of its own checkpoints.

    Raises:
        CheckpointError: names the settings that differ, with both values.
    """
    require_same(checkpoint, config, ["train.row_optimizer", *_of_the_source(checkpoint, config)])
    require_same_towers(checkpoint, config)


def require_same_towers(checkpoint: Checkpoint, config: FreshetConfig, advice: str = START_ANEW) -> None:
    """Check that the settings describe a checkpoint's towers; parameters missing in it are new.

    Raises:
        CheckpointError: names the settings that cause a difference, with both values.
    """
    theirs = _model_of(checkpoint, config.model)
    if theirs == config.model or _holds(_shapes(theirs), _shapes(config.model)):
        return
    differing = [
        item.name
        for item in fields(ModelConfig)
        if getattr(theirs, item.name) != getattr(config.model, item.name)
    ]
    decisive = [name for name in differing if not _harmless(theirs, name, getattr(config.model, name))]
    _refuse(checkpoint, config, [f"model.{name}" for name in decisive or differing], advice)


def require_same(
    checkpoint: Checkpoint, config: FreshetConfig, names: Sequence[str], advice: str = START_ANEW
) -> None:
    """Check that settings equal a checkpoint's; settings unknown to it are not checked.

    Args:
        checkpoint: its manifest has its settings.
        config: the run's.
        names: dotted keys.
        advice: what else can be done.
    Raises:
        CheckpointError: names the settings that differ, with both values.
    """
    theirs, ours = flat(checkpoint.manifest["config"]), flat(asdict(config))
    _refuse(checkpoint, config, [n for n in names if n in theirs and theirs[n] != ours[n]], advice)


def flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key."""
    return {
        f"{section}.{name}": value
        for section, values in sections.items()
        if isinstance(values, dict)
        for name, value in values.items()
    }


def _refuse(checkpoint: Checkpoint, config: FreshetConfig, names: Sequence[str], advice: str) -> None:
    if not names:
        return
    theirs, ours = flat(checkpoint.manifest["config"]), flat(asdict(config))
    saved, asked = (" and ".join(f"{name}={of.get(name)}" for name in names) for of in (theirs, ours))
    raise CheckpointError(
        f"{checkpoint.location} was trained with {saved}, this run has {asked}; set it so or {advice}"
    )


def _of_the_source(checkpoint: Checkpoint, config: FreshetConfig) -> list[str]:
    """The source that positions refer to: the topic, or files with a number of partitions."""
    read_files = bool(flat(checkpoint.manifest["config"]).get("stream.parquet"))
    if not (read_files or config.stream.parquet):
        return []
    return ["stream.parquet_partitions"] if read_files and config.stream.parquet else ["stream.parquet"]


def _model_of(checkpoint: Checkpoint, ours: ModelConfig) -> ModelConfig:
    """The checkpoint's model settings; settings that its version lacked are taken from the run."""
    saved = checkpoint.manifest["config"].get("model", {})
    known = {item.name for item in fields(ModelConfig)}
    return replace(ours, **{name: value for name, value in saved.items() if name in known})


def _shapes(config: ModelConfig) -> Shapes:
    import torch  # only where towers differ: a driver that resumes its own run needs no torch

    from model.cl_epidtn import cl_epidtn

    with torch.device("meta"):  # no memory, no numbers
        return {name: tuple(value.shape) for name, value in cl_epidtn(config, 1).state_dict().items()}


def _holds(saved: Shapes, own: Shapes) -> bool:
    return all(own.get(name) == shape for name, shape in saved.items())


def _harmless(theirs: ModelConfig, name: str, value: Any) -> bool:
    try:
        return _holds(_shapes(theirs), _shapes(replace(theirs, **{name: value})))
    except ValueError:  # only matters together with other differences
        return False
