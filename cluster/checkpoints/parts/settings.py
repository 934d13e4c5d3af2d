"""The settings that a checkpoint was written under, in the manifest; they name no secret, only its variable."""

from __future__ import annotations

from dataclasses import asdict
from typing import Protocol

from cluster.checkpoints.part import Copies, Part, Saved
from cluster.config import FreshetConfig


class Configured(Protocol):
    """The part of `TrainingRun` that `SettingsPart` saves."""

    @property
    def config(self) -> FreshetConfig:
        """Its settings."""


class SettingsPart(Part):
    """Says how the state came about. A run has settings of its own, so there is nothing to restore."""

    def __init__(self, run: Configured) -> None:
        self._run = run

    def copies(self) -> Copies:
        """See Part."""
        return Copies(told={"config": asdict(self._run.config)})

    def restore(self, saved: Saved) -> None:
        """See Part: whether the settings fit is asked before (`compatibility.py`)."""
