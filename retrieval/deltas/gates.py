"""Gates: what a delta must show before it is committed. One that fails is put aside, and a full refresh follows.

Shape letters: N items, D columns, S sampled items, K results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from retrieval.arrays import Float32Array, Int64Array
from retrieval.checks import Check, GateReport
from retrieval.config import IndexConfig
from retrieval.indexes.ivf import finite_rows
from retrieval.indexes.parts import Part
from retrieval.ranks import Ranks, gather_results

_NORM_FACTOR = 4.0
"""Vectors more than this times longer than the longest of the version, or shorter than the shortest, are outliers."""
_SAMPLED, _K = 32, 10
ROUNDING = 1e-3
"""Scores of items in a version are rounded, at most to float16."""


Bools = npt.NDArray[np.bool_]
Finds = Callable[[Int64Array, Float32Array], Bools]
"""Whether searches of the version find each of some items, ids (S,), by their vectors (S, D); bool (S,)."""


class Searchable(Protocol):
    """A version in memory (`LoadedVersion`), after the delta that is checked."""

    def search(self, query_QD: Float32Array, k: int) -> tuple[Int64Array, Float32Array]:
        """Ids and scores of the best items of each query."""


@dataclass(frozen=True)
class Norms:
    """The shortest and the longest vector of a version, by a sample."""

    least: float
    most: float

    @staticmethod
    def of(item_files: Sequence[Path]) -> Norms:
        """By the first vectors in each of a version's files of items."""
        norms = []
        for path in item_files:
            for _, vectors in Part(path).slices():
                norms.append(np.linalg.norm(vectors, axis=1))
                break
        every = np.concatenate([np.empty(0, np.float32), *norms])
        return Norms(float(every.min(initial=np.inf)), float(every.max(initial=0.0)))


@dataclass(frozen=True)
class _OfRank:
    items: int
    finite: int
    nonzero: int
    usual: int
    sampled: int
    found: int


def check_delta(
    ranks: Ranks,
    item_ids: Int64Array,
    vectors_ND: Float32Array,
    norms: Norms,
    finds: Finds | None,
    config: IndexConfig,
) -> GateReport:
    """Collective. Check the items of a delta, those of all ranks together; the report is the same on every rank.

    Args:
        ranks: that made the delta.
        item_ids: int64 (N,), of this rank's items.
        vectors_ND: float32.
        norms: of the version.
        finds: asked about a sample of this rank's items; None if this rank does not search.
        config: min_recall.
    Returns:
        The checks `finite`, `nonzero`, `norms`, and, if a rank has a view, `found`: the share of a sample of the items
        that a search for their own vector finds.
    """
    of_ranks = gather_results(ranks, lambda: _measure(item_ids, vectors_ND, norms, finds))
    items = sum(one.items for one in of_ranks) or 1

    def share_of(name: str) -> float:
        return sum(getattr(one, name) for one in of_ranks) / items if any(o.items for o in of_ranks) else 1.0

    checks = [
        Check(name, value, 1.0, value == 1, note)
        for name, value, note in (
            ("finite", share_of("finite"), ""),
            ("nonzero", share_of("nonzero"), ""),
            ("norms", share_of("usual"), f"those of the version are {norms.least:.3g} to {norms.most:.3g}"),
        )
    ]
    sampled = sum(one.sampled for one in of_ranks)
    if sampled:
        found = sum(one.found for one in of_ranks) / sampled
        checks.append(Check("found", found, config.min_recall, found >= config.min_recall))
    return GateReport(checks)


def _measure(item_ids: Int64Array, vectors_ND: Float32Array, norms: Norms, finds: Finds | None) -> _OfRank:
    finite = finite_rows(vectors_ND)
    with np.errstate(over="ignore", invalid="ignore"):
        norm_N = np.linalg.norm(vectors_ND, axis=1)
    usual = (norm_N >= norms.least / _NORM_FACTOR) & (norm_N <= norms.most * _NORM_FACTOR)
    counts = item_ids.shape[0], int(finite.sum()), int((norm_N != 0).sum()), int((usual | ~finite).sum())
    if finds is None or not finite.all():
        return _OfRank(*counts, 0, 0)
    chosen = np.linspace(0, item_ids.shape[0], min(_SAMPLED, item_ids.shape[0]), endpoint=False).astype(
        np.int64
    )
    found = int(finds(item_ids[chosen], vectors_ND[chosen]).sum()) if chosen.shape[0] else 0
    return _OfRank(*counts, chosen.shape[0], found)


def searches_find(view: Searchable, item_ids: Int64Array, vectors_SD: Float32Array) -> Bools:
    """Whether a search for each item's own vector finds it, or as many others that are at least as good."""
    ids_SK, score_SK = view.search(vectors_SD, _K)
    own_S = np.einsum("sd,sd->s", vectors_SD, vectors_SD)
    finite_SK = np.isfinite(score_SK)
    found_S = ((ids_SK == item_ids[:, None]) & finite_SK).any(axis=1)
    found: Bools = found_S | (finite_SK[:, -1] & (score_SK[:, -1] >= own_S * (1 - ROUNDING)))
    return found
