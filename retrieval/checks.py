"""Checks: one measured value against its bound each, and what to look at if one fails."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Check:
    """One measured value against its bound; `note` says what the bound comes from if no setting says it alone."""

    name: str
    value: float
    bound: float
    passed: bool
    note: str = ""

    def in_words(self) -> str:
        """The value, the bound, and what to look at."""
        side = "below" if self.value < self.bound else "above" if self.value > self.bound else "against"
        about = "; ".join(filter(None, (self.note, _ADVICE[self.name])))
        return f"{self.name} is {self.value:.4g}, {side} the bound {self.bound:.4g} ({about})"


@dataclass(frozen=True)
class GateReport:
    """All checks of one version or delta."""

    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether it may be served."""
        return all(check.passed for check in self.checks)

    def why_not(self) -> str:
        """The failed checks in words, with the settings that bound them."""
        return "; ".join(check.in_words() for check in self.checks if not check.passed)


_ADVICE = {
    "finite": "item or query vectors with NaN or infinity: the model has diverged",
    "nonzero": "item or query vectors of length zero: the model has collapsed",
    "recall": "index.min_recall; a larger index.max_probe_fraction searches more lists",
    "coverage": "index.min_coverage; known items have no vector",
    "imbalance": "index.max_imbalance; searches end in lists that are too long",
    "overlap": "index.min_overlap; results changed too much since the live version",
    "quality": "index.max_quality_loss; users would find fewer of the items that they chose",
    "norms": "vectors much longer or shorter than those of the version: rows have diverged",
    "found": "index.min_recall; searches for an item's own vector miss it",
}
