"""Freshness: seconds from the broker's append of an event to the moment a version trained on it is servable."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from streaming.arrays import Int64Array

# 20 bins per decade from 1 ms to 10^6 s: percentiles are within 12 % of the exact ones, in constant memory.
_EDGES_S = np.logspace(-3, 6, 181)


class FreshnessHistogram:
    """Ages of events in logarithmic bins; two histograms merge by adding."""

    def __init__(self, counts: Int64Array | None = None) -> None:
        self.counts = np.zeros(_EDGES_S.shape[0] + 1, np.int64) if counts is None else counts

    def add(self, ages_s: npt.NDArray[np.float64]) -> None:
        """Count ages in seconds, float64 (E,)."""
        np.add.at(self.counts, np.searchsorted(_EDGES_S, ages_s), 1)

    def percentile_s(self, share: float) -> float | None:
        """The age in seconds below which a share (0–1) of the events is; None without events."""
        total = int(self.counts.sum())
        if total == 0:
            return None
        place = int(np.searchsorted(np.cumsum(self.counts), share * total))
        return float(_EDGES_S[min(place, _EDGES_S.shape[0] - 1)])


class Freshness:
    """Freshness of the last minutes and of the whole run; a backlog at the start only affects the latter.

    Args:
        window_s: how long a version counts as recent.
        clock: seconds, monotonic.
    """

    def __init__(self, window_s: float = 300.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.run = FreshnessHistogram()
        self._window_s, self._clock = window_s, clock
        self._recent: deque[tuple[float, FreshnessHistogram]] = deque()

    def add(self, ages_s: npt.NDArray[np.float64]) -> None:
        """Count the events of a version that has just gone live: ages in seconds, float64 (E,)."""
        version = FreshnessHistogram()
        version.add(ages_s)
        self.run.counts += version.counts
        self._recent.append((self._clock(), version))

    @property
    def recent(self) -> FreshnessHistogram:
        """Of the versions of the last `window_s` seconds."""
        while self._recent and self._recent[0][0] < self._clock() - self._window_s:
            self._recent.popleft()
        counts = [version.counts for _, version in list(self._recent)]
        return FreshnessHistogram(np.sum(counts, axis=0) if counts else None)

    def figures(self) -> dict[str, float | None]:
        """For `progress.json`: percentiles in seconds of the last `window_s`, and `run_…` of the whole run."""
        recent = self.recent
        return {
            "window_s": self._window_s,
            "p50_s": recent.percentile_s(0.5),
            "p99_s": recent.percentile_s(0.99),
            "run_p50_s": self.run.percentile_s(0.5),
            "run_p99_s": self.run.percentile_s(0.99),
        }


class UnpublishedAppends:
    """Append times of the events trained since the last version, at most `limit` of them, evenly thinned."""

    def __init__(self, limit: int = 20_000) -> None:
        self._limit = limit
        self._parts: list[Int64Array] = []
        self._noted = self._kept = 0
        self._every = 1
        self._others: list[UnpublishedAppends] = []

    def share_with(self, other: UnpublishedAppends) -> None:
        """Record in another one, too, whatever is recorded here from now on."""
        self._others.append(other)

    def add(self, append_ms: Int64Array) -> None:
        """Record trained events by their broker append times, int64 milliseconds (E,)."""
        for other in self._others:
            other.add(append_ms)
        # Every _every-th of all events: thinning only old ones would favour the freshest.
        chosen = append_ms[-self._noted % self._every :: self._every]
        self._noted += append_ms.shape[0]
        self._parts.append(chosen)
        self._kept += chosen.shape[0]
        while self._kept > self._limit:
            self._parts = [np.concatenate(self._parts)[::2]]
            self._kept, self._every = self._parts[0].shape[0], self._every * 2

    def drain(self) -> Int64Array:
        """All recorded times, int64 (E,); clears them."""
        taken = np.concatenate([np.zeros(0, np.int64), *self._parts])
        self._parts, self._noted, self._kept, self._every = [], 0, 0, 1
        return taken
