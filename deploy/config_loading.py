"""Settings from defaults, a YAML file and `key=value` arguments; the only user of omegaconf.

Later sources win. A mistyped key or a value of the wrong type is refused in one line that names the key, before
anything else is started.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, cast, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cluster.config import FreshetConfig


class ConfigError(ValueError):
    """Settings cannot be used; one line with the key, the value and what to do."""


@dataclass(frozen=True)
class Setting:
    """One setting as `freshet settings` shows it."""

    key: str
    type_name: str
    default: object
    help: str


def load_config(config_file: Path | None, overrides: list[str]) -> FreshetConfig:
    """The validated settings.

    Args:
        config_file: YAML with the sections of FreshetConfig, or None.
        overrides: `train.checkpoint_every_s=30`, later ones win.
    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of range, an unreadable file.
    """
    merged = OmegaConf.structured(FreshetConfig)
    given: set[str] = set()
    for source, values in _sources(config_file, overrides):
        for key, value in _leaves(values):
            _require_known(key, source)
            given.add(key)
            try:
                OmegaConf.update(merged, key, value)
            except OmegaConfBaseException as error:
                reason = str(error).splitlines()[0]
                raise ConfigError(f"setting '{key}' cannot be {value!r} ({source}): {reason}") from error
    _follow_history_length(merged, given)
    try:
        return cast(FreshetConfig, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def describe_settings() -> list[Setting]:
    """Every setting with its type, default and meaning."""
    return list(_describe(FreshetConfig, ""))


def _sources(config_file: Path | None, overrides: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    if config_file is not None:
        yield str(config_file), _read_yaml(config_file)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"'{override}' is not a setting; write key=value, for example train.workers=2")
        try:
            yield f"argument '{override}'", {key: yaml.safe_load(text) if text else ""}
        except yaml.YAMLError as error:
            raise ConfigError(f"the value of '{override}' is not valid YAML: {error}") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"the settings file {path} does not exist (option --config)") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the settings file {path} cannot be read: {error} (option --config)") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, found {type(content).__name__}")
    return content


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _require_known(key: str, source: str) -> None:
    known = [setting.key for setting in describe_settings()]
    if key in known:
        return
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    if not close and any(name.startswith(f"{key}.") for name in known):
        hint = f" (it is a section: set one of its keys, for example {key}.{_first_in(key, known)}=...)"
    raise ConfigError(f"unknown setting '{key}'{hint} in {source}")


def _first_in(section: str, known: list[str]) -> str:
    return next(name for name in known if name.startswith(f"{section}.")).removeprefix(f"{section}.")


def _follow_history_length(merged: Any, given: set[str]) -> None:
    """The model sees what the stream gives it: `model.history_length` is `stream.history_length`."""
    stream, model = merged.stream.history_length, merged.model.history_length
    if "model.history_length" not in given:
        merged.model.history_length = stream
    elif "stream.history_length" not in given:
        merged.stream.history_length = model
    elif stream != model:
        raise ConfigError(f"model.history_length={model} but stream.history_length={stream}: set one of them")


def _describe(kind: type[Any], prefix: str) -> Iterator[Setting]:
    hints = get_type_hints(kind)
    documented = _attribute_help(kind)
    for item in fields(kind):
        hint = hints[item.name]
        if is_dataclass(hint):
            yield from _describe(cast("type[Any]", hint), f"{prefix}{item.name}.")
            continue
        text = item.metadata.get("help", documented.get(item.name, ""))
        yield Setting(f"{prefix}{item.name}", _type_name(hint), _default(item), text)


def _attribute_help(kind: type[Any]) -> dict[str, str]:
    """`name: meaning` lines of a docstring's Attributes section."""
    _, _, section = (kind.__doc__ or "").partition("Attributes:")
    pairs = (line.strip().partition(": ") for line in section.splitlines())
    return {name: text for name, separator, text in pairs if separator and name.isidentifier()}


def _default(item: Field[Any]) -> object:
    if item.default is not MISSING:
        return item.default
    return item.default_factory() if item.default_factory is not MISSING else None


def _type_name(hint: Any) -> str:
    return (
        hint.__name__ if isinstance(hint, type) and "[" not in str(hint) else str(hint).replace("typing.", "")
    )
