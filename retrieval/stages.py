"""Measures the duration of a publish's stages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stages:
    """Seconds of wall time by stage, in the order in which they first ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the block to a stage."""
        started = time.monotonic()
        try:
            yield
        finally:
            key = f"{name}_s"
            self.seconds[key] = self.seconds.get(key, 0.0) + time.monotonic() - started

    def __str__(self) -> str:
        return ", ".join(f"{name.removesuffix('_s')} {spent:.2f} s" for name, spent in self.seconds.items())
