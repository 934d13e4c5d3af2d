"""Gates: what a version must show before it goes live. A version that fails stays on disk for nobody."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from retrieval.config import IndexConfig
from retrieval.index import IvfIndex


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
        failed = [c for c in self.checks if not c.passed]
        return "; ".join(
            f"{c.name} is {c.value:.4g}, index.{_SETTING[c.name]} is {c.bound:.4g}" for c in failed
        )


_SETTING = {
    "recall": "min_recall",
    "coverage": "min_coverage",
    "imbalance": "max_imbalance",
    "overlap": "min_overlap",
}


def check_version(
    index: IvfIndex,
    config: IndexConfig,
    *,
    recall: float,
    known_items: int,
    overlap: float | None,
) -> GateReport:
    """Hold a candidate against its bounds.

    Args:
        index: the candidate.
        config: the bounds.
        recall: recall@k against exact search on recent queries, at the nprobe that will be served.
        known_items: items that should be there.
        overlap: share of the live version's results for the same queries that the candidate keeps, None without
            a live version. Off unless index.min_overlap is set.
    """
    coverage = index.size / known_items if known_items else 1.0
    checks = [
        Check("recall", recall, config.min_recall, recall >= config.min_recall),
        Check("coverage", coverage, config.min_coverage, coverage >= config.min_coverage),
        Check("imbalance", index.imbalance, config.max_imbalance, index.imbalance <= config.max_imbalance),
    ]
    if overlap is not None and config.min_overlap > 0:
        checks.append(Check("overlap", overlap, config.min_overlap, overlap >= config.min_overlap))
    return GateReport(checks)


def overlap_of(ids_QK: npt.NDArray[np.int64], previous_QK: npt.NDArray[np.int64]) -> float:
    """Share of the previous results, by id, that are among the new ones."""
    kept = sum((previous_QK == ids_QK[:, k : k + 1]).sum() for k in range(ids_QK.shape[1]))
    return float(kept / max(previous_QK.size, 1))
