"""The settings that a checkpoint was written under, in the manifest. They hold no secrets, only names of variables."""

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
    """Records how the state was made. A run has its own settings, so nothing is restored."""

    def __init__(self, run: Configured) -> None:
        self._run = run

    def copies(self) -> Copies:
        """See Part."""
        return Copies(told={"config": asdict(self._run.config)})

    def restore(self, saved: Saved) -> None:
        """See Part; `compatibility.py` has already checked whether the settings fit."""
