"""What a run says about the deltas that it makes; rank 0 reports it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.observability.freshness import Freshness


class DeltaFigures:
    """The figures of `deltas` in progress.json. Written by the thread that makes deltas, read by the training thread.

    Attributes:
        problem: why no deltas are made at present; empty if they are.
        refresh: why the last full refresh was due.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.problem = self.refresh = ""
        self._clock = clock
        self._freshness = Freshness(clock=clock)
        self._published = 0
        # One tuple, so that a reader never sees parts of two deltas.
        self._newest: tuple[str, int, float, float | None] = ("", 0, 0.0, None)

    def committed(self, version: str, number: int, share: float, ages_s: npt.NDArray[np.float64]) -> None:
        """Count a delta that has just become readable.

        Args:
            version: name of its version.
            number: its number.
            share: items in the deltas of this version, as a share of the version's items.
            ages_s: float64 (E,), seconds since the broker's append of the events that are new in it.
        """
        self._newest = (version, number, share, self._clock())
        self._published += 1
        self._freshness.add(ages_s)

    def to_json(self) -> dict[str, Any]:
        """For `progress.json`."""
        version, number, share, committed_s = self._newest
        percentiles = self._freshness.figures()
        return {
            "version": version or None,
            "number": number,
            "age_s": None if committed_s is None else self._clock() - committed_s,
            "published": self._published,
            "share": share,
            "refresh": self.refresh,
            "problem": self.problem,
            **{name: percentiles[name] for name in ("p50_s", "p99_s", "run_p50_s", "run_p99_s")},
        }
