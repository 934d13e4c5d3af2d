"""Item vectors to a live version, by all ranks together: write, sample, train, add, tune, gate, commit, promote.

Each rank holds one shard: its own items, in lists that are the same on all ranks. An error on one rank is raised on all
ranks at the end of the stage. Vectors are read in slices from the files that become part of the version.

Shape letters: Q queries, L lists, D columns.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.arrays import Float32Array, Int64Array, UInt8Array
from retrieval.checks import Check, GateReport
from retrieval.config import IndexConfig
from retrieval.indexes.coarse import train_centroids
from retrieval.indexes.ivf import IndexInputError, empty_index, finite_rows, lists_for
from retrieval.indexes.kinds import codec_sample
from retrieval.indexes.parts import Part
from retrieval.indexes.sharded_index import ShardedIndex
from retrieval.ranks import OneRank, Ranks, gather_results, keep_result, on_first_rank
from retrieval.stages import Stages
from retrieval.storage.base import MANIFEST
from retrieval.versions.attempt import AttemptFiles, ItemsOfRank
from retrieval.versions.gate import Quality, check_vectors
from retrieval.versions.live import live_centroids
from retrieval.versions.measuring import check_gates, live_to_compare, tune
from retrieval.versions.shards import WHOLE_INDEX, WHOLE_ITEMS
from retrieval.versions.store import Version, VersionStore

__all__ = ["NothingToIndex", "PublishReport", "publish"]

_MOST_QUERIES = 2048
_SAME_SIZE = 1.25
"""The live version's number of lists is kept while it is this close to the number that suits the number of items."""
_OF_THE_LISTS = {"recall", "imbalance"}
"""Gates that an index may fail because of the centroids from which it was started."""
_log = logging.getLogger(__name__)


class NothingToIndex(IndexInputError):
    """There are no items: none have arrived yet, or all of them were deleted."""


@dataclass(frozen=True)
class PublishReport:
    """The outcome of one attempt, the same on every rank.

    Attributes:
        version: None if a gate refused it; the live version is then the old one.
        refused: the version that was then kept aside.
        items: of all ranks.
        kind: of the index.
        nlist: inverted lists.
        nprobe: lists that a search reads.
        recall: recall@k against exact search, at this nprobe.
        gate: all checks.
        scanned: mean number of items that a search scans.
        seconds: wall time by stage.
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
    refused: Version | None = None

    @staticmethod
    def of(version: Version) -> PublishReport:
        """The report of a version that passed its gates, from its manifest."""
        about = version.manifest
        gate = GateReport([Check(**check) for check in about["gate"]])
        figures = {
            name: about[name] for name in ("items", "kind", "nlist", "nprobe", "recall", "scanned", "seconds")
        }
        return PublishReport(version, gate=gate, **figures)

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
            **({} if self.gate.passed else {"refused": self.gate.why_not()}),
            "seconds": self.seconds,
        }


def publish(
    store: VersionStore,
    folder: Path,
    items: Iterator[tuple[Int64Array, Float32Array]],
    query_QD: Float32Array,
    config: IndexConfig,
    *,
    ranks: Ranks | None = None,
    metadata: Mapping[str, object],
    seed: int,
    before_commit: Callable[[], None] = lambda: None,
    quality: Callable[[], Quality | None] = lambda: None,
) -> PublishReport:
    """Collective. Build a version beside the live one and promote it if it passes its gates, or keep it aside.

    Args:
        store: of the versions.
        folder: of this attempt, visible to all ranks. Its files (towers, rows, catalogue) become part of the version
            and are moved there; the caller removes hidden files and leftovers of a failure.
        items: ids int64 (S,) and vectors float32 (S, D) of this rank's items, in slices; iterated once. Every item
            belongs to one rank.
        query_QD: float32, recent query vectors of the same model; recall is tuned and gated on them (on a sample
            if they are many). Without any, on item vectors. Only rank 0's are used.
        config: index kind, sizes, gates.
        ranks: that build the version together; by default this process alone.
        metadata: goes into the manifest (coverage is measured relative to `known_items`).
        seed: of k-means and of the samples.
        before_commit: called on rank 0 once the gates have decided; if it raises, nothing is committed.
        quality: collective; recent events on which the candidate is compared with the live version, the same on every
            rank. Called when the candidate is ready, so that there can be events that it was not trained on.
    Raises:
        NothingToIndex: no rank has an item; raised on every rank.
        IndexInputError: the items do not make an index, or the queries do not fit them.
        OSError, VersionError: the storage failed.
        OtherRankError, OtherRankStorageError: another rank failed.
    """
    attempt = _Attempt(store, folder, config, ranks or OneRank(), seed)
    report = attempt.build(items, query_QD, metadata, quality)
    if attempt.ranks.rank == 0 and not report.gate.passed:
        _log.warning("a new index version was refused, the live one stays: %s", report.gate.why_not())
    with attempt.stages.timed("commit"):
        described = {**metadata, **report.figures(), "dim": attempt.width, "recall_k": config.recall_k}
        version = attempt.commit(described, before_commit, promote=report.gate.passed)
    passed, refused = (version, None) if report.gate.passed else (None, version)
    report = replace(report, version=passed, refused=refused, seconds=attempt.stages.seconds)
    if attempt.ranks.rank == 0:
        _say(report, version, attempt.stages)
    return report


class _Attempt:
    """One rank's part of an attempt; its methods are collective."""

    def __init__(
        self, store: VersionStore, folder: Path, config: IndexConfig, ranks: Ranks, seed: int
    ) -> None:
        self.ranks, self.stages = ranks, Stages()
        self.items = self.width = 0
        self._store, self._config, self._seed = store, config, seed
        self._files = AttemptFiles(folder, ranks.rank, ranks.world)
        self._index: ShardedIndex | None = None

    def build(
        self,
        items: Iterator[tuple[Int64Array, Float32Array]],
        query_QD: Float32Array,
        metadata: Mapping[str, object],
        quality: Callable[[], Quality | None],
    ) -> PublishReport:
        """Everything up to the gates."""
        with self.stages.timed("items"):
            gate, queries = self._write_items(items, query_QD)
        if not gate.passed:
            return PublishReport(None, self.items, self._config.kind, 0, 0, 0.0, gate)
        with self.stages.timed("sample"):
            warm_LD, warm_lists = on_first_rank(self.ranks, self._warm_start)
            fresh_lists = lists_for(self.items, self._config)
            wanted = self._config.sample_per_list * max(fresh_lists, warm_lists)
            gather_results(
                self.ranks, lambda: self._files.write_sample(wanted, self.items, self.width, self._seed)
            )
        coverage = self.items / (int(str(metadata.get("known_items", self.items))) or self.items)
        if warm_lists:
            report = self._candidate(queries, warm_lists, warm_LD, coverage, quality)
            failed = {check.name for check in report.gate.checks if not check.passed}
            if not failed & _OF_THE_LISTS:
                return report
            _log.info(
                "with lists from the live version's, %s; they are trained from scratch", report.gate.why_not()
            )
        return self._candidate(queries, fresh_lists, None, coverage, quality)

    def commit(
        self, described: Mapping[str, Any], before_commit: Callable[[], None], *, promote: bool
    ) -> Version:
        """Write the shards, if there are any, and on rank 0 move all files into a version and promote it."""
        index = self._index
        if index is not None:
            gather_results(self.ranks, lambda: index.shard.save(self._files.index))

        def commit() -> tuple[str, Mapping[str, Any]]:
            before_commit()
            has_index = {} if index is not None else {"has_index": False}
            version = _committed(self._store, self._files.for_version(), {**described, **has_index})
            if promote:
                version = self._store.promote(version.name)
            _prune(self._store, self._config)
            return version.name, version.manifest

        name, manifest = on_first_rank(self.ranks, commit)
        return Version(name, manifest, self._store.storage)

    def _write_items(
        self, items: Iterator[tuple[Int64Array, Float32Array]], query_QD: Float32Array
    ) -> tuple[GateReport, Float32Array]:
        """The check of all vectors, and the queries of rank 0, at most 2,048 of all alike."""

        def write() -> tuple[ItemsOfRank, Float32Array | None]:
            queries = _sample(query_QD, self._seed) if self.ranks.rank == 0 else None
            return self._files.write_items(items), queries

        gathered = gather_results(self.ranks, write)
        written: list[ItemsOfRank] = [of_rank for of_rank, _ in gathered]
        queries = gathered[0][1]
        assert queries is not None
        self.items = sum(of_rank.items for of_rank in written)
        if self.items == 0:
            raise NothingToIndex("there are no items to index")
        widths = sorted({of_rank.width for of_rank in written if of_rank.width})
        if len(widths) > 1:
            raise IndexInputError(f"the ranks have vectors of widths {widths}")
        [self.width] = widths
        if queries.shape[0] and queries.shape[1:] != (self.width,):
            raise IndexInputError(
                f"queries have shape {queries.shape}, item vectors have {self.width} columns"
            )
        return _check_vectors(written, queries), queries

    def _warm_start(self) -> tuple[Float32Array | None, int]:
        """Centroids of the live version to start from, and their number; None and 0 to train from scratch."""
        centroids = live_centroids(self._store) if self._config.warm_start_iterations else None
        if centroids is None or centroids.shape[1] != self.width:
            return None, 0
        lists, fresh = centroids.shape[0], lists_for(self.items, self._config)
        near = self._config.nlist == 0 and max(lists, fresh) <= _SAME_SIZE * min(lists, fresh)
        return (centroids, lists) if lists == fresh or near else (None, 0)

    def _candidate(
        self,
        query_QD: Float32Array,
        lists: int,
        start_LD: Float32Array | None,
        coverage: float,
        quality: Callable[[], Quality | None],
    ) -> PublishReport:
        """Build, tune and measure with a number of lists."""
        config, ranks = self._config, self.ranks

        def train() -> tuple[Float32Array, UInt8Array, Float32Array]:
            sample = self._files.read_sample()
            centroids = train_centroids(sample, lists, config, seed=self._seed, warm_start_LD=start_LD)
            empty = empty_index(config, centroids, codec_sample(sample, config.kind))
            return centroids, empty, query_QD if query_QD.shape[0] else _sample(sample, self._seed)

        with self.stages.timed("train"):
            centroids, empty, query_QD = on_first_rank(ranks, train)
        with self.stages.timed("add"):
            shard, ids = keep_result(ranks, lambda: self._files.build_shard(centroids, empty, config))
            index = ShardedIndex(ranks, shard, ids)
        with self.stages.timed("exact"):
            k, cards = min(config.recall_k, index.size), config.cards() if config.on_gpu() else ()
            wanted_QK = index.exact(query_QD, k, Part(self._files.items), cards).row_QK
        with self.stages.timed("tune"):
            self._index, nprobe, recall = tune(index, query_QD, wanted_QK, config)
        with self.stages.timed("gate"):
            asked = quality()
            live = live_to_compare(self._store, ranks, config, asked)
            measured = check_gates(self._index, query_QD, nprobe, recall, coverage, config, live, asked)
        return PublishReport(
            None, index.size, config.kind, lists, nprobe, recall, measured.gate, measured.scanned
        )


def _sample(query_QD: Float32Array, seed: int) -> Float32Array:
    """At most 2,048 queries, drawn from all of them, because they are ordered by rank."""
    if query_QD.ndim != 2:
        raise IndexInputError(f"queries have shape {query_QD.shape} instead of two dimensions")
    if query_QD.shape[0] > _MOST_QUERIES:
        chosen = np.random.default_rng(seed).choice(query_QD.shape[0], _MOST_QUERIES, replace=False)
        query_QD = query_QD[np.sort(chosen)]
    return np.ascontiguousarray(query_QD, np.float32)


def _check_vectors(written: list[ItemsOfRank], query_QD: Float32Array) -> GateReport:
    bad_ids = [item for of_rank in written for item in of_rank.bad_ids][:3]
    vectors = sum(of_rank.items for of_rank in written) + query_QD.shape[0]
    finite = sum(of_rank.finite for of_rank in written) + int(finite_rows(query_QD).sum())
    nonzero = sum(of_rank.nonzero for of_rank in written) + int(query_QD.any(axis=1).sum())
    if bad_ids:
        _log.warning("%d vectors are not finite, first of items %s", vectors - finite, bad_ids)
    return check_vectors(finite / vectors, nonzero / vectors)


def _committed(store: VersionStore, files: list[Path], described: Mapping[str, Any]) -> Version:
    taken = sorted({WHOLE_INDEX, WHOLE_ITEMS, MANIFEST} & {path.name for path in files})
    if taken:
        raise ValueError(f"{files[0].parent} holds {', '.join(taken)}: a version has files of these names")
    building = store.begin()
    try:
        for path in files:
            shutil.move(path, building.path / path.name)
        return store.commit(building, described)
    except Exception:
        building.remove()
        raise


def _prune(store: VersionStore, config: IndexConfig) -> None:
    """Remove old versions; a failure is only logged, because the new version is already live."""
    try:
        store.prune(config.versions_to_keep, config.refused_versions_to_keep)
    except OSError as error:
        _log.warning("an old index version in %s was not removed: %s", store.where, error)


def _say(report: PublishReport, version: Version, stages: Stages) -> None:
    if report.version is None:
        _log.warning("the refused index version is kept as %s", version.name)
        return
    _log.info(
        "index version %s: %d items, %d lists, nprobe %d, recall %.4f; %s",
        *(version.name, report.items, report.nlist, report.nprobe, report.recall, stages),
    )
