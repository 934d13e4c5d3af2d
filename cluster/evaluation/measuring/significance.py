"""Whether one system is better than another on the same users: paired bootstrap and paired t-test.

Shape letters: Q queries (users), K systems, R resamples. The first system is the reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.baselines.extra import evaluation_package
from streaming.arrays import Float64Array

RESAMPLES = 10_000
LEVEL = 0.95
_RESAMPLES_AT_ONCE = 16


@dataclass(frozen=True)
class Comparison:
    """The reference compared with another system; differences are reference minus other."""

    difference: float
    low: float
    """Bounds of the 95 % percentile interval."""
    high: float
    gain: float
    """Relative, difference / other; nan if the other is at zero."""
    gain_low: float
    gain_high: float
    t: float
    p: float
    """Two-sided, of the t-test."""


@dataclass(frozen=True)
class PerQuery:
    """One metric of all systems: a system's figure is Σ_q numerator / Σ_q denominator."""

    numerator_QK: Float64Array
    """Averaged over seeds."""
    denominator_Q: Float64Array
    """The same for all systems; zero for a query that does not count in the metric."""


def compare(
    metrics: Mapping[str, PerQuery], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, list[Comparison]]:
    """Comparisons of the first system with each other one, by metric.

    Args:
        metrics: of the same queries and systems.
        resamples: R.
        seed: of the resampling; all systems and metrics use the same resamples.
    Returns:
        K − 1 comparisons for each metric.
    """
    figure_RK = bootstrap_figures(list(metrics.values()), resamples=resamples, seed=seed)
    return {
        name: _compare(metric, figure_RK[name_at]) for name_at, (name, metric) in enumerate(metrics.items())
    }


def _compare(metric: PerQuery, figure_RK: Float64Array) -> list[Comparison]:
    inside = metric.denominator_Q > 0
    numerator_QK, denominator_Q = metric.numerator_QK[inside], metric.denominator_Q[inside]
    figure_K = _quotient(numerator_QK.sum(axis=0), denominator_Q.sum())
    found = []
    for k in range(1, numerator_QK.shape[1]):
        difference_R, gain_R = figure_RK[:, 0] - figure_RK[:, k], _gain(figure_RK[:, 0], figure_RK[:, k])
        # Each query's share of the difference; their mean is the difference.
        share_Q = (numerator_QK[:, 0] - numerator_QK[:, k]) * (
            len(denominator_Q) / max(denominator_Q.sum(), 1.0)
        )
        found.append(
            Comparison(
                float(figure_K[0] - figure_K[k]),
                *_interval(difference_R),
                float(_gain(figure_K[:1], figure_K[k : k + 1])[0]),
                *_interval(gain_R),
                *paired_t_test(share_Q),
            )
        )
    return found


def bootstrap_figures(metrics: Sequence[PerQuery], *, resamples: int, seed: int) -> list[Float64Array]:
    """Every system's figures on R samples of Q queries with replacement, float64 (R, K) for each metric."""
    rng = np.random.default_rng(seed)
    queries = metrics[0].denominator_Q.shape[0]
    columns_QX = np.column_stack([part for m in metrics for part in (m.numerator_QK, m.denominator_Q)])
    parts = []
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        rows = min(_RESAMPLES_AT_ONCE, resamples - start)
        drawn_RQ = rng.integers(0, queries, (rows, queries))
        # One bincount for all rows of the block: row r counts in its own range of Q entries.
        drawn_RQ += np.arange(rows)[:, None] * queries
        count_RQ = np.bincount(drawn_RQ.reshape(-1), minlength=rows * queries).reshape(rows, queries)
        parts.append(count_RQ.astype(np.float64) @ columns_QX)
    sums_RX = np.concatenate(parts)
    ends = np.cumsum([m.numerator_QK.shape[1] + 1 for m in metrics])
    return [_quotient(block[:, :-1], block[:, -1:]) for block in np.split(sums_RX, ends[:-1], axis=1)]


def paired_t_test(difference_Q: Float64Array) -> tuple[float, float]:
    """Student's t of the mean of paired differences, and its two-sided p with Q − 1 degrees of freedom.

    t = mean(d) / (s(d) / √Q); if all differences are equal, the result is (0, 1) at zero and (±inf, 0) otherwise.
    """
    count = difference_Q.shape[0]
    if count < 2:
        return math.nan, math.nan
    mean, deviation = float(difference_Q.mean()), float(difference_Q.std(ddof=1))
    if deviation == 0.0:
        return (0.0, 1.0) if mean == 0.0 else (math.copysign(math.inf, mean), 0.0)
    t = mean / (deviation / math.sqrt(count))
    return t, two_sided_p(t, count - 1)


def two_sided_p(t: float, degrees: int) -> float:
    """P(|T| >= |t|) of Student's distribution."""
    return float(2.0 * evaluation_package("scipy.special").stdtr(degrees, -abs(t)))


def _quotient(numerators: Float64Array, denominators: Any) -> Float64Array:
    """The quotient; nan if the denominator is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient: Float64Array = numerators / denominators
    return quotient


def _gain(reference: Float64Array, other: Float64Array) -> Float64Array:
    return np.where(other > 0, _quotient(reference, other) - 1.0, np.nan)


def _interval(values_R: Float64Array) -> tuple[float, float]:
    """The bounds of the central LEVEL of the values; nan if all are nan."""
    if np.isnan(values_R).all():
        return math.nan, math.nan
    low, high = np.nanquantile(values_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
