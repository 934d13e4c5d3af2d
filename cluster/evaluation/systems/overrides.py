"""Settings by dotted key: those that systems force, a search draws, or a sweep varies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from cluster.evaluation.config import OfflineConfig
from cluster.setting_names import why_unknown

_Config = TypeVar("_Config")
_HISTORY_LENGTHS = frozenset({"model.history_length", "stream.history_length"})


class OverrideError(ValueError):
    """An unknown setting, or a value that it cannot have; the message names both."""


def with_settings(config: OfflineConfig, values: Mapping[str, Any]) -> OfflineConfig:
    """A copy with other values; a section's own checks run once for all of them.

    Args:
        config: is not changed.
        values: `{"model.dropout": 0.3}`. One history length sets the other, because the model sees the stream's
            history.
    Raises:
        OverrideError: an unknown key or a value of another type.
        ValueError: a section refuses the values.
    """
    known = dict(leaves(config))
    nested: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise OverrideError(f"unknown setting '{key}'{why_unknown(key, known)}")
        for name in _HISTORY_LENGTHS if key in _HISTORY_LENGTHS else (key,):
            _put(nested, name, _as_type_of(known[name], value, name))
    return _replaced(config, nested)


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting as its dotted key and its value."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def _put(nested: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        nested = nested.setdefault(section, {})
    nested[name] = value


def _replaced(config: _Config, nested: Mapping[str, Any]) -> _Config:
    changes = {
        name: _replaced(getattr(config, name), value) if isinstance(value, dict) else value
        for name, value in nested.items()
    }
    return replace(config, **changes)  # type: ignore[type-var]


def _as_type_of(now: Any, value: Any, key: str) -> Any:
    """The value; a whole number becomes a float if the setting is one."""
    if isinstance(now, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(now):
        raise OverrideError(f"setting '{key}' cannot be {value!r}: it is a {type(now).__name__}")
    return value
