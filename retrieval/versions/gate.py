"""Gates: what a version must show before it goes live. One that fails is kept aside and not served.

Shape letters: Q queries, K results, D columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retrieval.arrays import Float32Array, Int64Array
from retrieval.checks import Check, GateReport
from retrieval.config import IndexConfig

_STANDARD_ERRORS = 3.0


@dataclass(frozen=True)
class Measured:
    """What was measured of a candidate.

    Attributes:
        recall: recall@k against exact search on recent queries, at the nprobe that will be served.
        coverage: items indexed / items known.
        imbalance: items that these queries scan / what they would scan in lists of equal length. Faiss' own factor
            ignores where queries go: by it, the lists that suit skewed norms best look worst.
        overlap: share of the live version's results for the same queries that the candidate keeps; None without
            a live version or with the gate off.
    """

    recall: float
    coverage: float
    imbalance: float
    overlap: float | None


@dataclass(frozen=True)
class Quality:
    """Recent events whose items a candidate must find about as often as the live version does.

    Attributes:
        query_QD: float32, by the candidate's query tower from the history before each event.
        live_query_QD: float32, the same by the live version's own query tower; its D may differ.
        target_Q: int64, the item of each event.
        seen: int64 each, the items that the user had before the event; as in serving, they are not recommended.
        top_k: K of the hit rate HR@K.
        trained_on: whether the candidate may have been trained on these events. Its hit rate is then too high.
    """

    query_QD: Float32Array
    live_query_QD: Float32Array
    target_Q: Int64Array
    seen: Sequence[Int64Array]
    top_k: int
    trained_on: bool = False


def hits(ids_QK: Int64Array, score_QK: Float32Array, target_Q: Int64Array) -> npt.NDArray[np.bool_]:
    """Which queries found their target, bool (Q,). A score of -inf marks padding: any int64 is an id."""
    found: npt.NDArray[np.bool_] = ((ids_QK == target_Q[:, None]) & np.isfinite(score_QK)).any(axis=1)
    return found


def check_version(measured: Measured, config: IndexConfig) -> GateReport:
    """Hold a candidate against its bounds."""
    m = measured
    checks = [
        Check("recall", m.recall, config.min_recall, m.recall >= config.min_recall),
        Check("coverage", m.coverage, config.min_coverage, m.coverage >= config.min_coverage),
        Check("imbalance", m.imbalance, config.max_imbalance, m.imbalance <= config.max_imbalance),
    ]
    if m.overlap is not None:
        checks.append(Check("overlap", m.overlap, config.min_overlap, m.overlap >= config.min_overlap))
    return GateReport(checks)


def check_quality(
    hit_Q: npt.NDArray[np.bool_],
    live_hit_Q: npt.NDArray[np.bool_],
    config: IndexConfig,
    *,
    trained_on: bool = False,
) -> Check | None:
    """Hold the candidate's hit rate against the live version's on the same events.

    Let h and l be the hits of the candidate and of the live version, a = 1 - index.max_quality_loss, and s the standard
    error of the mean of h - a·l over the events. The candidate fails if mean(h) < a·mean(l) - 3s. By chance alone, one
    that is exactly at a·mean(l) fails one time in 740, and one as good as the live version far less often. Comparing
    event by event keeps s small: events that are hard for both versions do not add to it.

    Args:
        hit_Q: whether the candidate found the item of each event.
        live_hit_Q: the same of the live version.
        config: `max_quality_loss` (1 = off) and `min_quality_events`.
        trained_on: see `Quality`.
    Returns:
        None if the gate is off or there are too few events.
    """
    events = hit_Q.shape[0]
    if config.max_quality_loss >= 1 or events < config.min_quality_events:
        return None
    kept = 1 - config.max_quality_loss
    live = float(live_hit_Q.mean())
    error = float(np.std(hit_Q - kept * live_hit_Q, ddof=1)) / math.sqrt(events)
    rate, bound = float(hit_Q.mean()), max(0.0, kept * live - _STANDARD_ERRORS * error)
    which = "that the candidate may have been trained on" if trained_on else "after both were trained"
    note = f"the live version's is {live:.4g} on {events:,} events {which}"
    return Check("quality", rate, bound, rate >= bound, note)


def check_vectors(finite: float, nonzero: float) -> GateReport:
    """The report on vectors of which no index is built unless both shares are 1.

    Args:
        finite: share of the item and query vectors without NaN and infinity.
        nonzero: share of them whose length is not zero.
    """
    return GateReport(
        [Check("finite", finite, 1.0, finite == 1), Check("nonzero", nonzero, 1.0, nonzero == 1)]
    )


def not_finite(share: float) -> GateReport:
    """The report on vectors that no index can be built of."""
    return GateReport([Check("finite", share, 1.0, False)])


def overlap_of(
    ids_QK: npt.NDArray[np.int64], previous_QK: npt.NDArray[np.int64], wanted_QK: npt.NDArray[np.bool_]
) -> float:
    """Share of the previous results, by id, that are among the new ones.

    Args:
        ids_QK: the new results.
        previous_QK: the live version's.
        wanted_QK: false where `previous_QK` is padding. Any int64 is an id, so padding cannot be told by value.
    """
    kept_QK = np.zeros(previous_QK.shape, np.bool_)
    for k in range(ids_QK.shape[1]):
        kept_QK |= ids_QK[:, k : k + 1] == previous_QK
    return float((kept_QK & wanted_QK).sum() / wanted_QK.sum()) if wanted_QK.any() else 1.0
