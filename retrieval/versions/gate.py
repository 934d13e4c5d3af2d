"""Gates: what a version must show before it goes live. A version that fails is never committed.

Shape letters: Q queries, K results.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from retrieval.config import IndexConfig


@dataclass(frozen=True)
class Check:
    """One measured value against its bound."""

    name: str
    value: float
    bound: float
    passed: bool


@dataclass(frozen=True)
class GateReport:
    """All checks of one version."""

    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the version may go live."""
        return all(check.passed for check in self.checks)

    def why_not(self) -> str:
        """The failed checks in words, with the settings that bound them."""
        failed = [check for check in self.checks if not check.passed]
        return "; ".join(
            f"{check.name} is {check.value:.4g}, the bound {check.bound:.4g} ({_ADVICE[check.name]})"
            for check in failed
        )


_ADVICE = {
    "finite": "item vectors with NaN or infinity: the model has diverged",
    "recall": "index.min_recall; a larger index.max_probe_fraction searches more lists",
    "coverage": "index.min_coverage; known items have no vector",
    "imbalance": "index.max_imbalance; searches end in lists that are too long",
    "overlap": "index.min_overlap; results changed too much since the live version",
}


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
