"""The probability that an item is a candidate of a step, for the softmax's sampling correction.

Shape letters: M candidates.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_SMALLEST = 1e-12
# A frequency of 1 may come out above it: item weights and total weight are summed in different orders.
_ROUNDING = 1e-6


def combined_log_q(
    frequency_M: npt.NDArray[np.float64],
    batch_events: float,
    catalogue_items: int,
    uniform_negatives: int,
) -> npt.NDArray[np.float32]:
    """log q of in-batch and uniform sampling together: q = 1 − (1 − p)^B (1 − 1/I)^N  (docs/model.md, main loss).

    An item is a candidate if it is the item of one of the step's B events or of one of N uniform draws with
    replacement.

    Args:
        frequency_M: float64, p, the item's share of the stream's events so far.
        batch_events: B, weight of the global step's events.
        catalogue_items: I, known items.
        uniform_negatives: N, draws.
    Returns:
        float32 (M,), natural logarithms, at least log 1e-12.
    Raises:
        ValueError: a frequency is outside [0, 1] by more than rounding explains.
    """
    if frequency_M.size and not (frequency_M.min() >= 0.0 and frequency_M.max() <= 1.0 + _ROUNDING):
        raise ValueError(
            f"item frequencies must be in [0, 1], got {frequency_M.min()} to {frequency_M.max()}"
        )
    # log1p and expm1: for a rare item, (1 − p)^B is too close to 1 to subtract it from 1 in float64.
    log_missed_M = batch_events * np.log1p(-np.minimum(frequency_M, 1.0 - 1e-9))
    if catalogue_items > 1:
        log_missed_M = log_missed_M + uniform_negatives * np.log1p(-1.0 / catalogue_items)
    q_M = -np.expm1(log_missed_M)
    return np.log(np.maximum(q_M, _SMALLEST)).astype(np.float32)
