"""Item vectors to a live version: build, tune, gate, commit, promote.

Shape letters: N items, Q queries, D columns.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.arrays import Float32Array, Int64Array
from retrieval.config import IndexConfig
from retrieval.indexes.exact import exact_top_k, recall_at_k
from retrieval.indexes.gpu_index import build_index
from retrieval.indexes.ivf import IndexInputError, IvfIndex, finite_rows
from retrieval.indexes.parts import read_parts, write_part
from retrieval.storage.base import MANIFEST
from retrieval.versions.gate import GateReport, Measured, check_version, not_finite, overlap_of
from retrieval.versions.searcher import INDEX_FILE, ITEMS_FILE, SEARCHED_FILES, LoadedVersion
from retrieval.versions.store import Version, VersionError, VersionStore
from retrieval.versions.tuning import choose_nprobe

__all__ = ["PublishReport", "publish", "write_part"]


_MOST_QUERIES = 2048
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishReport:
    """What came of one attempt.

    `version` is None if a gate refused it; the live version is then the old one. `scanned` is how many items a search
    compares with, on average.
    """

    version: Version | None
    items: int
    kind: str
    nlist: int
    nprobe: int
    recall: float
    gate: GateReport
    scanned: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """The numbers, ready for JSON."""
        return {
            "items": self.items,
            "kind": self.kind,
            "nlist": self.nlist,
            "nprobe": self.nprobe,
            "recall": self.recall,
            "scanned": self.scanned,
            "gate": [asdict(check) for check in self.gate.checks],
            "seconds": self.seconds,
        }


def publish(
    store: VersionStore,
    parts: Sequence[Path],
    query_QD: Float32Array,
    config: IndexConfig,
    *,
    extra_files: Mapping[str, Path],
    metadata: Mapping[str, object],
    seed: int,
    before_commit: Callable[[], None] = lambda: None,
) -> PublishReport:
    """Build a version beside the live one and promote it if it passes its gates.

    Args:
        store: where versions live.
        parts: what `write_part` wrote, one per rank; every item in one of them.
        query_QD: float32, recent query vectors of the same model; recall is tuned and gated on them (on a sample
            if they are many). Without any, on item vectors.
        config: index kind, sizes, gates.
        extra_files: copied into the version under these names (query tower, rows, catalogue).
        metadata: goes into the manifest (`known_items` is what coverage is measured against).
        seed: of k-means and of the sample.
        before_commit: called once the gates are passed; if it raises, nothing goes live.
    Raises:
        IndexInputError: the parts do not make an index, or the queries do not fit them.
        OSError, VersionError: the storage failed.
    """
    clock = _Clock()
    ids, vectors = read_parts(parts)
    queries = _sample(query_QD if query_QD.shape[0] else vectors, vectors.shape[1], seed)
    finite = np.concatenate([finite_rows(vectors), finite_rows(queries)])
    if not finite.all():
        gate = not_finite(float(finite.mean()))
        bad_ids = ids[~finite[: ids.shape[0]]]
        _log.warning(
            "%d item vectors are not finite, first of items %s", bad_ids.shape[0], bad_ids[:3].tolist()
        )
        return _settled(PublishReport(None, ids.shape[0], config.kind, 0, 0, 0.0, gate))
    live = _live_version(store, vectors.shape[1], config)
    warm_start = live.index.centroids() if live is not None and config.warm_start_iterations else None
    index = build_index(vectors, config, seed=seed, warm_start_LD=warm_start)
    clock.lap("build_s")
    report = _measure(
        index, ids, vectors, queries, live, config, int(str(metadata.get("known_items", ids.shape[0])))
    )
    clock.lap("gate_s")
    if report.gate.passed:
        before_commit()
        described = {**metadata, **report.figures(), "dim": index.dim, "recall_k": config.recall_k}
        version = _commit(store, index, ids, vectors, extra_files, described)
        _prune(store, config.versions_to_keep)
        report = replace(report, version=version)
        clock.lap("commit_s")
    return _settled(replace(report, seconds=clock.laps))


def _prune(store: VersionStore, keep: int) -> None:
    """Old versions that cannot be removed are no reason to call the new one, which is live, a failure."""
    try:
        store.prune(keep)
    except OSError as error:
        _log.warning("an old index version in %s was not removed: %s", store.where, error)


def _settled(report: PublishReport) -> PublishReport:
    if report.version is None:
        _log.warning("a new index version was refused, the live one stays: %s", report.gate.why_not())
    return report


def _measure(
    index: IvfIndex,
    ids: Int64Array,
    vectors: Float32Array,
    queries: Float32Array,
    live: LoadedVersion | None,
    config: IndexConfig,
    known_items: int,
) -> PublishReport:
    gpu = config.gpu if config.on_gpu() else None
    wanted = exact_top_k(queries, vectors, min(config.recall_k, ids.shape[0]), gpu)
    nprobe, recall = choose_nprobe(index, queries, wanted, config)
    if index.on_cpu() is not index:  # tuned on a GPU; what is committed is what is measured
        index = index.on_cpu()
        recall = recall_at_k(index.search(queries, wanted.shape[1], nprobe)[0], wanted)
    scanned = index.scanned(queries, nprobe)
    measured = Measured(
        recall=recall,
        coverage=ids.shape[0] / known_items if known_items else 1.0,
        imbalance=scanned * index.nlist / (nprobe * index.size),
        overlap=_overlap(live, index, ids, queries, nprobe, config),
    )
    gate = check_version(measured, config)
    return PublishReport(None, index.size, index.kind, index.nlist, nprobe, recall, gate, scanned)


def _sample(query_QD: Float32Array, dim: int, seed: int) -> Float32Array:
    """At most 2,048 queries, from all of them alike: they come rank by rank."""
    if query_QD.ndim != 2 or query_QD.shape[1] != dim:
        raise IndexInputError(f"queries have shape {query_QD.shape}, item vectors have {dim} columns")
    if query_QD.shape[0] > _MOST_QUERIES:
        chosen = np.random.default_rng(seed).choice(query_QD.shape[0], _MOST_QUERIES, replace=False)
        query_QD = query_QD[np.sort(chosen)]
    return np.ascontiguousarray(query_QD, np.float32)


def _live_version(store: VersionStore, dim: int, config: IndexConfig) -> LoadedVersion | None:
    """The live version if a setting asks for it and it compares: a damaged one must not block its successor."""
    if not (config.min_overlap or config.warm_start_iterations):
        return None
    try:
        live = store.current()
        if live is None:
            return None
        loaded = LoadedVersion.load(store.verify(live.name, SEARCHED_FILES))
    except VersionError as error:
        _log.warning("the live index version is not compared with: %s", error)
        return None
    return loaded if loaded.index.dim == dim else None


def _overlap(
    live: LoadedVersion | None,
    index: IvfIndex,
    ids: Int64Array,
    queries: Float32Array,
    nprobe: int,
    config: IndexConfig,
) -> float | None:
    if live is None or config.min_overlap == 0:
        return None
    rows, _ = index.search(queries, config.recall_k, nprobe)
    previous_ids, scores = live.search(queries, config.recall_k)
    found = np.where(rows >= 0, ids[np.maximum(rows, 0)], -1)
    return overlap_of(found, previous_ids, np.isfinite(scores))


def _commit(
    store: VersionStore,
    index: IvfIndex,
    ids: Int64Array,
    vectors: Float32Array,
    extra_files: Mapping[str, Path],
    described: Mapping[str, Any],
) -> Version:
    taken = sorted({INDEX_FILE, ITEMS_FILE, MANIFEST} & set(extra_files))
    if taken:
        raise ValueError(
            f"extra_files must not be named {', '.join(taken)}: a version has files of these names"
        )
    building = store.begin()
    try:
        index.save(building.path / INDEX_FILE)
        write_part(building.path / ITEMS_FILE, ids, vectors)
        for name, source in extra_files.items():
            shutil.copyfile(source, building.path / name)
        version = store.commit(building, described)
    except Exception:
        building.remove()
        raise
    return store.promote(version.name)


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name], self._last = now - self._last, now
