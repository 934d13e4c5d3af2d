"""Descriptions of all settings from their declarations: type, default, bounds and help, by section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from cluster.evaluation.config import OfflineConfig
from model.setting import choices_of

RUN_SECTION = "run"
"""The group of settings without a section, such as storage_path."""


@dataclass(frozen=True)
class Setting:
    """One setting, as `freshet settings` and the reference show it."""

    key: str
    type_name: str
    default: object
    bounds: str
    """For example `≥ 1` or `[0, 1)`; empty if any value of the type is allowed."""
    help: str


@dataclass(frozen=True)
class Section:
    """Settings that belong together."""

    name: str
    purpose: str
    """One sentence."""
    settings: tuple[Setting, ...]


def describe_sections() -> list[Section]:
    """All sections with their settings; those without a section first."""
    hints = get_type_hints(OfflineConfig)
    leaves = [item for item in fields(OfflineConfig) if not is_dataclass(hints[item.name])]
    own = tuple(_setting(item, hints[item.name], "") for item in leaves)
    found = [Section(RUN_SECTION, "Device, precision, storage and seed of a run.", own)]
    for item in fields(OfflineConfig):
        kind = hints[item.name]
        if is_dataclass(kind):
            inner = get_type_hints(kind)
            settings = tuple(_setting(each, inner[each.name], f"{item.name}.") for each in fields(kind))
            found.append(Section(item.name, first_sentence(kind.__doc__ or ""), settings))
    return sorted(found, key=lambda section: section.name == "broker")  # last, because it is rarely needed


def describe_settings() -> list[Setting]:
    """Every setting with its type, default, bounds and help."""
    return [setting for section in describe_sections() for setting in section.settings]


def _setting(item: Field[Any], hint: Any, prefix: str) -> Setting:
    return Setting(
        f"{prefix}{item.name}",
        _type_name(hint),
        _default(item),
        _bounds(item.metadata),
        item.metadata["help"],
    )


def first_sentence(text: str) -> str:
    """The first sentence of a help text or a docstring, on one line, with its full stop."""
    sentence = " ".join(text.split("\n\n")[0].split()).partition(". ")[0]
    return f"{sentence.rstrip('.')}."


def _type_name(hint: Any) -> str:
    if choices := choices_of(hint):
        return " | ".join(str(choice) or '""' for choice in choices)
    return hint.__name__ if type(hint) is type else str(hint)


def _default(item: Field[Any]) -> object:
    if item.default is not MISSING:
        return item.default
    return item.default_factory() if item.default_factory is not MISSING else None


def _bounds(metadata: Mapping[str, Any]) -> str:
    signs = {"at_least": "≥", "above": ">", "at_most": "≤", "below": "<"}
    stated = [(name, metadata[name]) for name in signs if name in metadata]
    if len(stated) == 2:
        (first, low), (last, high) = stated
        return f"{'[' if first == 'at_least' else '('}{low:g}, {high:g}{']' if last == 'at_most' else ')'}"
    return "".join(f"{signs[name]} {value:g}" for name, value in stated)


def shown(value: object) -> str:
    """A value as it is written after `key=`; an empty text is shown as quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return str(value) if value != "" else '""'
