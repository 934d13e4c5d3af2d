"""Records the start and end of checks in a file that survives a crash of the writing process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BROKEN = 70
"""Exit status: CUDA does not work any more in this process."""


class Log:
    """Lines of JSON, on disk at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, **entry: Any) -> None:
        """One more line."""
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def entries(self) -> list[dict[str, Any]]:
        """All lines so far."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def begun(self) -> list[str]:
        """What has begun so far, in any process."""
        return [entry["begun"] for entry in self.entries() if "begun" in entry]

    def unfinished(self) -> str | None:
        """What had begun and not ended when the process was over."""
        ended = {entry.get("ended") for entry in self.entries()}
        return next((name for name in self.begun()[::-1] if name not in ended), None)


def line_of(figure: dict[str, Any]) -> str:
    """A figure as people read it, with its floor where it has one, or why it could not be measured."""
    floor = f"  floor {figure['floor']:.4g} ({figure['floor_of']})" if "floor" in figure else ""
    value = figure.get("why") or f"{figure['value']:.4g} {figure['unit']}{floor}"
    return f"{figure['figure']:52} {value}"
