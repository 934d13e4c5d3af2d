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


def verdict_text(checks: Sequence[Mapping[str, Any]]) -> str:
    """Whether a version passed its gates, with its quality, or with what it failed; empty if there are no checks."""
    failed = [_against_bound(check) for check in checks if not check["passed"]]
    if failed:
        return f"last refused: {', '.join(failed)}"
    quality = [_against_bound(check) for check in checks if check["name"] == "quality"]
    return ", ".join(["gates passed", *quality]) if checks else ""


def _against_bound(check: Mapping[str, Any]) -> str:
    sign = ("≤", ">") if check["name"] in _UPPER_BOUNDS else ("≥", "<")
    return f"{check['name']} {_number(check['value'])} {sign[not check['passed']]} {_number(check['bound'])}"


def _text(check: Mapping[str, Any]) -> str:
    limit = "at most" if check["name"] in _UPPER_BOUNDS else "at least"
    failed = "" if check["passed"] else "FAILED "
    return f"{failed}{check['name']} {_number(check['value'])} ({limit} {_number(check['bound'])})"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "–"
