"""The file of tuned settings that `evaluate --tuned` takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from deploy.command.errors import UsageError
from deploy.evaluate.options import EvaluateOptions

if TYPE_CHECKING:
    from cluster.evaluation.config import OfflineConfig


def read_tuned(options: EvaluateOptions, config: OfflineConfig) -> dict[str, dict[str, Any]]:
    """Settings by model from the file given with `--tuned`, without those set by arguments, which win.

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
    """The content of a file of tuned settings, validated."""
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
