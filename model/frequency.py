"""How likely an item is to be a candidate of a step, for the sampling correction of the softmax.

Shape letters: M candidates.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_SMALLEST = 1e-12
# An item that is all of a stream: its weights and those of all events are added up in different orders.
_ROUNDING = 1e-6


def combined_log_q(
    frequency_M: npt.NDArray[np.float64],
    batch_events: float,
    catalogue_items: int,
    uniform_negatives: int,
) -> npt.NDArray[np.float32]:
    """log q of in-batch and uniform sampling together: q = 1 − (1 − p)^B (1 − 1/I)^N  (docs/model.md, main loss).

    An item is a candidate if one of B events of the step takes it or one of N uniform draws with replacement
    hits it; q is one minus the chance that neither happens.

    Args:
        frequency_M: float64, p, the item's share of the stream's events so far.
        batch_events: B, weight of the global step's events.
        catalogue_items: I, known items.
        uniform_negatives: N, draws.
    Returns:
        float32 (M,), natural logarithms, at least log 1e-12.
    Raises:
        ValueError: a frequency outside [0, 1], by more than the rounding of long sums.
    """
    if frequency_M.size and not (frequency_M.min() >= 0.0 and frequency_M.max() <= 1.0 + _ROUNDING):
        raise ValueError(
            f"item frequencies must be in [0, 1], got {frequency_M.min()} to {frequency_M.max()}"
        )
    # log1p and expm1: (1 − p)^B of a rare item is closer to 1 than the spacing of float64 allows to subtract.
    log_missed_M = batch_events * np.log1p(-np.minimum(frequency_M, 1.0 - 1e-9))
    if catalogue_items > 1:
        log_missed_M = log_missed_M + uniform_negatives * np.log1p(-1.0 / catalogue_items)
    q_M = -np.expm1(log_missed_M)
    return np.log(np.maximum(q_M, _SMALLEST)).astype(np.float32)
