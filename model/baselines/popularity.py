"""Streaming popularity: an item's score is how often it has been taken so far.

Shape letters: E events, I items, R recent items.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


class StreamingPopularity:
    """Counts over dense item indices; grows with the catalogue."""

    def __init__(self) -> None:
        self._count_I = np.zeros(0, np.int64)

    def update(self, target_E: Int64Array, recent_ER: Int64Array) -> None:
        """Count the events' items; `recent_ER` is not read (the baselines share one interface)."""
        if target_E.shape[0] == 0:
            return
        size = max(self._count_I.shape[0], int(target_E.max()) + 1)
        counts = np.bincount(target_E, minlength=size)
        counts[: self._count_I.shape[0]] += self._count_I
        self._count_I = counts

    def scores(self, recent_ER: Int64Array, items: int) -> Float32Array:
        """The same counts for every event, float32 (E, items), read-only."""
        padded_I = np.zeros(items, np.float32)
        known = min(items, self._count_I.shape[0])
        padded_I[:known] = self._count_I[:known]
        return np.broadcast_to(padded_I, (recent_ER.shape[0], items))

    def to_arrays(self) -> dict[str, npt.NDArray[np.int64]]:
        """The state for a checkpoint."""
        return {"count": self._count_I}

    def load_arrays(self, arrays: dict[str, npt.NDArray[np.int64]]) -> None:
        """Take up a checkpoint's state."""
        self._count_I = np.array(arrays["count"], np.int64)
