"""Settings from defaults, a YAML file and `key=value` arguments; the only user of omegaconf.

Later sources win. A mistyped key or a value of the wrong type is refused in one line that names the key, before
anything is started.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cluster.config import FreshetConfig
from cluster.evaluation.config import OfflineConfig
from cluster.setting_names import why_unknown

_HISTORY_LENGTHS = frozenset({"model.history_length", "stream.history_length"})


class ConfigError(ValueError):
    """Settings cannot be used; one line with the key, the value and what to do."""


def load_config(config_file: Path | None, overrides: list[str]) -> FreshetConfig:
    """The validated settings of a run; those of an offline evaluation are checked but left out.

    See load_offline_config for the arguments and errors.
    """
    offline = load_offline_config(config_file, overrides)
    return FreshetConfig(**{item.name: getattr(offline, item.name) for item in fields(FreshetConfig)})


def load_offline_config(
    config_file: Path | None, overrides: list[str], presets: Sequence[Path] = ()
) -> OfflineConfig:
    """The validated settings of a run and of an offline evaluation.

    Args:
        config_file: YAML with the sections of OfflineConfig, or None.
        overrides: `train.checkpoint_every_s=30`, later ones win.
        presets: YAML files below the config file, later ones win.
    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of range, an unreadable file.
    """
    merged = OmegaConf.structured(OfflineConfig)
    types = _types(OfflineConfig)
    below = _apply(merged, _files(presets), types)
    given = _apply(merged, _sources(config_file, overrides, types), types)
    try:
        # A preset's history length is only a default: the user's, in either section, overrides both.
        _follow_history_length(merged, given if given & _HISTORY_LENGTHS else below)
        return cast(OfflineConfig, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from error
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _apply(merged: Any, sources: Iterator[tuple[str, dict[str, Any]]], types: Mapping[str, Any]) -> set[str]:
    """Apply the sources; returns the keys that they set."""
    given: set[str] = set()
    for source, values in sources:
        for key, value in _leaves(values, types):
            _require_known(key, types, source)
            _assign(merged, key, value, types[key], source)
            given.add(key)
    return given


def _files(paths: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in paths:
        yield str(path), _read_yaml(path)


def _sources(
    config_file: Path | None, overrides: list[str], types: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    if config_file is not None:
        yield from _files([config_file])
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"'{override}' is not a setting; write key=value, for example train.workers=2")
        # Not the argument itself: it may hold a password after a mistyped key.
        yield "the arguments", {key: _argument_value(key, text, types)}


def _argument_value(key: str, text: str, types: Mapping[str, Any]) -> Any:
    """The YAML value, but unchanged text if the setting is a string (`topic=on`, `user=0123`, `path=a: b`)."""
    keeps_text = _is_text(types.get(key, str)) and not _is_section(key, types)
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError as error:
        if keeps_text:
            return text
        raise ConfigError(f"the value of '{key}={text}' is not valid YAML: {_one_line(error)}") from error
    return text if keeps_text and not isinstance(value, str) else value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"the settings file {path} does not exist (option --config)") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the settings file {path} cannot be read: {error} (option --config)") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_one_line(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, found {type(content).__name__}")
    return content


def _leaves(values: dict[Any, Any], types: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in types:
            yield from _leaves(value, types, f"{key}.")
        elif value is not None or not _is_section(key, types):  # a section without keys sets nothing
            yield key, value


def _is_section(key: str, types: Mapping[str, Any]) -> bool:
    return any(name.startswith(f"{key}.") for name in types)


def _require_known(key: str, types: Mapping[str, Any], source: str) -> None:
    if key in types:
        return
    hint = why_unknown(key, types)
    if _is_section(key, types):
        hint = f" (it is a section: set one of its keys, for example {key}.{_first_in(key, list(types))}=...)"
    raise ConfigError(f"unknown setting '{key}'{hint} in {source}")


def _assign(merged: Any, key: str, value: Any, kind: Any, source: str) -> None:
    """Set one leaf; values that omegaconf would silently convert are refused."""
    reason = _why_refused(value, kind)
    if not reason:
        try:
            OmegaConf.update(merged, key, value)
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
    if reason:
        raise ConfigError(f"setting '{key}' cannot be {value!r} in {source}: {reason}")


def _why_refused(value: Any, kind: Any) -> str:
    if value is None:
        return "it needs a value"
    if isinstance(value, dict):
        return "it is one setting, not a section"
    if _is_text(kind) and not isinstance(value, str):
        return "it is text: put it in quotes"
    if kind == list[str] and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        return "it is a list of texts, for example [a, b]"
    if kind is bool and not isinstance(value, bool):
        return "it is true or false"
    if kind is float and not _is_finite(value):
        return "it is a finite number"
    return ""


def _is_text(kind: Any) -> bool:
    return kind is str or get_origin(kind) is Literal


def _is_finite(value: Any) -> bool:
    # YAML 1.1 reads 2e-3 as text; omegaconf refuses what is not a number.
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split("full_key")[0].split())


def _first_in(section: str, known: list[str]) -> str:
    return next(name for name in known if name.startswith(f"{section}.")).removeprefix(f"{section}.")


def _follow_history_length(merged: Any, given: set[str]) -> None:
    """Make `model.history_length` equal to `stream.history_length`, because the model sees the stream's history."""
    stream, model = merged.stream.history_length, merged.model.history_length
    if "model.history_length" not in given:
        merged.model.history_length = stream
    elif "stream.history_length" not in given:
        merged.stream.history_length = model
    elif stream != model:
        raise ConfigError(f"model.history_length={model} but stream.history_length={stream}: set one of them")


def _types(kind: type[Any], prefix: str = "") -> dict[str, Any]:
    """The declared type of every leaf, by its dotted key."""
    types: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            types |= _types(cast("type[Any]", hint), f"{prefix}{name}.")
        else:
            types[f"{prefix}{name}"] = hint
    return types
