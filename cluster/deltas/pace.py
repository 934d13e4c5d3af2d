"""The time between two deltas: as set, or longer, so that deltas take at most a set share of a core."""

from __future__ import annotations


class Pace:
    """Stretches the interval by what the last deltas have cost.

    Args:
        every_s: the shortest interval in seconds.
        cpu_share: most CPU seconds of the delta's thread per second.
    """

    def __init__(self, every_s: float, cpu_share: float) -> None:
        self._every_s, self._cpu_share = every_s, cpu_share
        self._cost_s = 0.0

    def cost(self, cpu_s: float) -> None:
        """Note the CPU seconds of a delta; one that is dear by accident counts for half."""
        self._cost_s = (self._cost_s + cpu_s) / 2 if self._cost_s else cpu_s

    @property
    def interval_s(self) -> float:
        """Seconds from the start of a delta to the start of the next."""
        return max(self._every_s, self._cost_s / self._cpu_share)
