"""The gates of an index version as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_UPPER_BOUNDS = {"imbalance"}


def gates_text(checks: Sequence[Mapping[str, Any]]) -> str:
    """Each check with its value and its bound, those that failed first and marked.

    Args:
        checks: `name`, `value`, `bound` and `passed` of each, from a manifest, a report, or progress.json.
    """
    in_order = sorted(checks, key=lambda check: bool(check["passed"]))
    return ", ".join(map(_text, in_order)) or "none"


def _text(check: Mapping[str, Any]) -> str:
    limit = "at most" if check["name"] in _UPPER_BOUNDS else "at least"
    failed = "" if check["passed"] else "FAILED "
    return f"{failed}{check['name']} {_number(check['value'])} ({limit} {_number(check['bound'])})"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "–"
