"""How a setting is declared: default, help and bounds in one place, which the checks and `freshet settings` read.

`model`, `retrieval` and `streaming` never import one another, so each has a copy of this file; a test compares them.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import field, fields
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

_Value = TypeVar("_Value")
_HOLDS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def setting(default: _Value, help: str, **bounds: float) -> _Value:
    """A field of a settings dataclass.

    Args:
        default: a list is copied for each object.
        help: one or more whole sentences.
        bounds: `at_least` or `above`, `at_most` or `below`.
    """
    assert bounds.keys() <= _HOLDS.keys(), f"unknown bounds {sorted(bounds)}"
    metadata = {"help": help, **bounds}
    if isinstance(default, list):
        return cast(_Value, field(default_factory=default.copy, metadata=metadata))
    return field(default=default, metadata=metadata)


def require_declared(section: str, settings: Any, error: type[Exception] = ValueError) -> None:
    """Check that every value of a settings dataclass is within its bounds, or one of its choices.

    Args:
        section: what the names in a message begin with; empty for none.
        settings: the dataclass.
        error: what is raised, with one text as its argument.
    Raises:
        error: names the setting, what it must be, and the value.
    """
    hints = get_type_hints(type(settings))
    for item in fields(settings):
        value, rule = getattr(settings, item.name), rule_of(item.metadata, hints[item.name])
        choices = choices_of(hints[item.name])
        within = all(
            holds(value, item.metadata[name]) for name, holds in _HOLDS.items() if name in item.metadata
        )
        if not within or (choices and value not in choices):
            name = f"{section}.{item.name}" if section else item.name
            raise error(f"{name} must {rule}, got {value!r}")


def choices_of(hint: Any) -> tuple[Any, ...]:
    """The values that a Literal allows; empty for any other type."""
    return get_args(hint) if get_origin(hint) is Literal else ()


def rule_of(metadata: Mapping[str, Any], hint: Any) -> str:
    """What a value must do, to be put after "must"; empty if any value of the type will do."""
    *others, last = [f"{choice}" or "empty" for choice in choices_of(hint)] or [""]
    if last:
        return f"be {', '.join(others)} or {last}"
    low = metadata.get("at_least", metadata.get("above"))
    high = metadata.get("at_most", metadata.get("below"))
    if low is not None and high is not None:
        return f"be in {'[' if 'at_least' in metadata else '('}{low:g}, {high:g}{']' if 'at_most' in metadata else ')'}"
    if low is not None:
        if low == 0:
            return "not be negative" if "at_least" in metadata else "be positive"
        return f"be {'at least' if 'at_least' in metadata else 'above'} {low:g}"
    if high is not None:
        return f"be {'at most' if 'at_most' in metadata else 'below'} {high:g}"
    return ""
