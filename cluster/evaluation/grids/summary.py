"""Summarizes cells of one system at one point: means over seeds, and comparisons of the reference with the others.

Shape letters: Q queries, K systems.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.evaluation.grids.cell import Cell, CellResult
from cluster.evaluation.grids.code_version import code_of
from cluster.evaluation.grids.grid import GridOutcome
from cluster.evaluation.measuring.measures import SLICES
from cluster.evaluation.measuring.significance import Comparison, PerQuery, compare
from cluster.evaluation.systems.systems import REFERENCE, SYSTEMS

COMPARED = ("hr@10", "ndcg@10", *(f"{part}_hr@10" for part in SLICES))


@dataclass
class Row:
    """One system at one point of the sweep."""

    system: str
    point: Mapping[str, Any]
    results: list[CellResult] = field(default_factory=list)
    """One per seed; the same one repeated if the seed has no effect."""
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    """By metric: the reference at the same point compared with this system."""

    @property
    def outdated(self) -> int:
        """Number of results that were measured by other code than the current one."""
        return sum(result.code != code_of(SYSTEMS[self.system]) for result in self.results)

    @property
    def seeds(self) -> int:
        """Number of seeds with a result."""
        return len(self.results)

    @property
    def refused_steps(self) -> int:
        """Number of refused training steps, over all seeds."""
        return sum(result.fitted.refused_steps for result in self.results)

    def mean(self, figure: str) -> float:
        """Over seeds."""
        return float(np.mean([result.figures[figure] for result in self.results]))

    def std(self, figure: str) -> float:
        """Sample standard deviation over seeds; 0 for one seed."""
        values = [result.figures[figure] for result in self.results]
        return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    @property
    def train_s(self) -> float:
        """Mean seconds of training of a seed, validation not included."""
        return float(np.mean([result.fitted.train_s for result in self.results]))

    @property
    def examples_per_s(self) -> float:
        """Mean over seeds; nan if no time was measured."""
        return float(np.mean([result.fitted.examples_per_s for result in self.results]))

    @property
    def validation(self) -> float:
        """Mean over seeds of the best pass's HR@10."""
        return float(np.mean([result.validation for result in self.results]))


def summarise(cells: Iterable[Cell], outcome: GridOutcome) -> list[Row]:
    """One row for each system and point with a result, in the order of the cells.

    It is compared if the point has a result of the reference.
    """
    rows: dict[tuple[str, str], Row] = {}
    for cell in cells:
        result = outcome.of(cell)
        if result is not None:
            row = rows.setdefault((cell.system, repr(cell.point)), Row(cell.system, cell.point))
            row.results.append(result)
    for point in {point for _, point in rows}:
        _compare([row for (_, at), row in rows.items() if at == point])
    return list(rows.values())


def _compare(rows: Sequence[Row]) -> None:
    """Fills in the comparisons of the rows of one point."""
    reference = next((row for row in rows if row.system == REFERENCE), None)
    others = [row for row in rows if row is not reference and _same_queries(row, reference)]
    if reference is None or not others:
        return
    found = compare({metric: _per_user((reference, *others), metric) for metric in COMPARED})
    for metric, comparisons in found.items():
        for row, comparison in zip(others, comparisons, strict=True):
            row.comparisons[metric] = comparison


def _same_queries(row: Row, reference: Row | None) -> bool:
    """Whether the two can be paired."""
    if reference is None:
        return False
    ours, theirs = row.results[0].ranks, reference.results[0].ranks
    return ours is not None and theirs is not None and np.array_equal(ours.user_Q, theirs.user_Q)


def _per_user(rows: Sequence[Row], metric: str) -> PerQuery:
    """A metric of all rows, each averaged over its seeds."""
    numerators, denominator_Q = [], np.zeros(0)
    for row in rows:
        parts = [result.ranks.per_user(metric) for result in row.results if result.ranks is not None]
        numerators.append(np.mean([numerator_Q for numerator_Q, _ in parts], axis=0))
        denominator_Q = parts[0][1]
    return PerQuery(np.stack(numerators, axis=1), denominator_Q)
