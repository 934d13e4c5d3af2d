"""Measures a candidate before it may go live: nprobe and recall on recent queries, and its gates.

Shape letters: Q queries, K results, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrieval.arrays import Float32Array, Int64Array
from retrieval.checks import Check, GateReport
from retrieval.config import IndexConfig
from retrieval.indexes.exact import recall_at_k
from retrieval.indexes.sharded_index import ShardedIndex
from retrieval.ranks import Ranks
from retrieval.versions.gate import (
    Measured,
    Quality,
    check_quality,
    check_version,
    hits,
    overlap_of,
)
from retrieval.versions.live import LiveSearch, open_live
from retrieval.versions.store import VersionStore
from retrieval.versions.tuning import choose_nprobe

_NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True)
class Measurement:
    """See `PublishReport`."""

    nprobe: int
    recall: float
    scanned: float
    gate: GateReport


def tune(
    index: ShardedIndex, query_QD: Float32Array, wanted_QK: Int64Array, config: IndexConfig
) -> tuple[ShardedIndex, int, float]:
    """Collective. The index that will be committed, its nprobe, and its recall@k.

    Args:
        index: on the CPU or on a GPU.
        query_QD: float32.
        wanted_QK: int64, exact results by row number.
        config: see `choose_nprobe`.
    """
    nprobe, recall = choose_nprobe(index, query_QD, wanted_QK, config)
    committed = index.on_cpu()
    if committed is not index:  # tuned on a GPU; the index that is committed must be the one that is measured
        recall = recall_at_k(committed.search(query_QD, wanted_QK.shape[1], nprobe)[0], wanted_QK)
    return committed, nprobe, recall


def check_gates(
    index: ShardedIndex,
    query_QD: Float32Array,
    nprobe: int,
    recall: float,
    coverage: float,
    config: IndexConfig,
    live: LiveSearch | None,
    quality: Quality | None,
) -> Measurement:
    """Collective. Check a tuned candidate against its bounds and the live version.

    Args:
        index: the candidate.
        query_QD: float32, the queries that it was tuned on.
        nprobe: lists that a search will read.
        recall: recall@k at this nprobe.
        coverage: items indexed / items known.
        config: the bounds.
        live: the version that it is compared with.
        quality: events to compare on.
    """
    scanned = index.scanned(query_QD, nprobe)
    measured = Measured(
        recall=recall,
        coverage=coverage,
        imbalance=scanned * index.nlist / (nprobe * index.size),
        overlap=_overlap(index, query_QD, nprobe, config, live),
    )
    checks = [*check_version(measured, config).checks, *_quality(index, nprobe, config, live, quality)]
    return Measurement(nprobe, recall, scanned, GateReport(checks))


def live_to_compare(
    store: VersionStore, ranks: Ranks, config: IndexConfig, quality: Quality | None
) -> LiveSearch | None:
    """Collective. The live version if a gate compares with it."""
    return open_live(store, ranks) if config.min_overlap > 0 or quality is not None else None


def _overlap(
    index: ShardedIndex, query_QD: Float32Array, nprobe: int, config: IndexConfig, live: LiveSearch | None
) -> float | None:
    if live is None or config.min_overlap == 0 or live.dim != index.shard.dim:
        return None
    found = index.find(query_QD, config.recall_k, nprobe)
    previous_ids, scores = live.search_excluding(
        query_QD, config.recall_k, [_NOTHING] * query_QD.shape[0], live.nprobe
    )
    return overlap_of(found.id_QK, previous_ids, np.isfinite(scores))


def _quality(
    index: ShardedIndex, nprobe: int, config: IndexConfig, live: LiveSearch | None, quality: Quality | None
) -> list[Check]:
    if live is None or quality is None or live.dim != quality.live_query_QD.shape[1]:
        return []
    k, seen = quality.top_k, quality.seen
    found = index.search_excluding(quality.query_QD, k, seen, nprobe)
    found_live = live.search_excluding(quality.live_query_QD, k, seen, live.nprobe)
    hit_Q, live_hit_Q = hits(*found, quality.target_Q), hits(*found_live, quality.target_Q)
    check = check_quality(hit_Q, live_hit_Q, config, trained_on=quality.trained_on)
    return [check] if check is not None else []
