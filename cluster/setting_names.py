"""Names of settings: those of earlier versions, and the nearest known name for a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

RENAMED_SECTIONS: Mapping[str, str] = {"evaluation": "progressive"}
"""Sections that had another name in earlier versions, with their present name."""


def present_name(key: str) -> str:
    """The present name of a dotted key; a key that was never renamed is returned as it is."""
    section, separator, name = key.partition(".")
    return f"{RENAMED_SECTIONS.get(section, section)}{separator}{name}"


def with_present_names(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that any version has saved, by section, under their present names."""
    return {present_name(section): values for section, values in saved.items()}


def why_unknown(key: str, known: Collection[str]) -> str:
    """An explanation to append to an unknown key: its new name or the nearest known one; empty if there is none."""
    if present_name(key) != key:
        return f" (it is now called '{present_name(key)}')"
    return did_you_mean(key, known)


def did_you_mean(name: str, known: Collection[str]) -> str:
    """A hint at the nearest known name, in parentheses with a space before; empty if none is near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""
