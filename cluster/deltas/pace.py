"""The time between two deltas: as set, or longer, so that deltas take at most a set share of a core."""

from __future__ import annotations

from collections import deque
from statistics import median_low

_REMEMBERED = 5


class Pace:
    """Stretches the interval by what the last deltas have cost.

    Args:
        every_s: the shortest interval in seconds.
        cpu_share: most CPU seconds of the delta's thread per second.
    """

    def __init__(self, every_s: float, cpu_share: float) -> None:
        self._every_s, self._cpu_share = every_s, cpu_share
        self._costs_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._warm = False

    def cost(self, cpu_s: float) -> None:
        """Note the CPU seconds of a delta; the first one of a process does not count, because it loads and compiles."""
        if self._warm:
            self._costs_s.append(cpu_s)
        self._warm = True

    @property
    def interval_s(self) -> float:
        """Seconds from the start of a delta to the start of the next, by the median of what the last ones have cost."""
        return max(self._every_s, median_low(self._costs_s) / self._cpu_share if self._costs_s else 0.0)
