"""What the command line of `evaluate` asks for, read and checked before anything starts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from deploy.command.errors import UsageError
from deploy.command.options import settings

if TYPE_CHECKING:
    from cluster.config import FreshetConfig


@dataclass(frozen=True)
class EvaluateOptions:
    """The options as they were given."""

    data: str
    models: str = "all"
    seeds: int = 1
    sweeps: list[str] = field(default_factory=list)
    preset: str = "default"
    trials: int = 0
    tuned: Path | None = None
    out: Path | None = None
    workers: int | None = None
    ray_address: str = ""
    config: Path | None = None
    overrides: list[str] = field(default_factory=list)

    @property
    def overridden(self) -> set[str]:
        """Keys that the arguments set."""
        return {override.partition("=")[0] for override in self.overrides}


def sweep_points(options: EvaluateOptions) -> list[dict[str, Any]]:
    """One setting with its value for each value of each sweep; what is not swept stays as configured.

    Raises:
        UsageError: a sweep without key or values.
        ConfigError: an unknown setting, or a value that it cannot have.
    """
    points: list[dict[str, Any]] = []
    for text in options.sweeps:
        key, _, values = text.partition("=")
        # Commas inside a list's brackets separate nothing.
        texts = [value for value in re.split(r",(?![^\[]*\])", values) if value]
        if not key or not texts:
            raise UsageError(f"'{text}' is no sweep; write --sweep key=v1,v2, for example model.layers=1,2,5")
        points += [{key: _value(options, key, value)} for value in texts]
    return points


def _value(options: EvaluateOptions, key: str, text: str) -> Any:
    value: Any = settings(options.config, [*options.overrides, f"{key}={text}"], options.preset)
    for name in key.split("."):
        value = getattr(value, name)
    return value


def read_tuned(options: EvaluateOptions, config: FreshetConfig) -> dict[str, dict[str, Any]]:
    """Settings by model from the file that `--tuned` names, without those that the arguments set: these win.

    Raises:
        UsageError: the file cannot be read, or holds something else; names file, model and setting.
    """
    from cluster.evaluation.systems.systems import SYSTEMS

    path = options.tuned
    if path is None:
        return {}
    tuned = {}
    for name, values in _models_of(path).items():
        tuned[name] = {key: value for key, value in values.items() if key not in options.overridden}
        try:
            SYSTEMS[name].settings_of(config, tuned[name], {})
        except ValueError as error:
            raise UsageError(f"{path}: {name}: {error} (option --tuned)") from error
    return tuned


def _models_of(path: Path) -> dict[str, dict[str, Any]]:
    """The content of a file of tuned settings, if it is one."""
    from cluster.evaluation.systems.systems import SYSTEMS

    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read: {' '.join(str(error).split())} (option --tuned)") from error
    if not isinstance(content, dict) or not all(isinstance(v, dict | None) for v in content.values()):
        raise UsageError(
            f"{path} must hold settings by model, for example 'dssm: {{model.dropout: 0.3}}' (option --tuned)"
        )
    for name in content:
        if name not in SYSTEMS:
            raise UsageError(f"{path} names '{name}', but models are {', '.join(SYSTEMS)} (option --tuned)")
    return {name: dict(values or {}) for name, values in content.items()}
