"""The progressive curve, in the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from cluster.checkpoints.part import Copies, Part, Saved


class SavedAsJson(Protocol):
    """An object that can save and restore its state."""

    def to_json(self) -> Mapping[str, Any]:
        """A copy of it."""

    def load_json(self, saved: Mapping[str, Any]) -> None:
        """The inverse."""


class CurvePart(Part):
    """Hits over trained events; the same on every rank."""

    def __init__(self, curve: SavedAsJson) -> None:
        self._curve = curve

    def copies(self) -> Copies:
        """See Part."""
        return Copies(told={"curve": self._curve.to_json()})

    def restore(self, saved: Saved) -> None:
        """See Part."""
        self._curve.load_json(saved.manifest["curve"])
