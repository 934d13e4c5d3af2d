"""Recall while items come, go, and drift, through deltas and full refreshes: in the manner of streaming runbooks.

    python tests/benchmarks/drift.py [--json FILE] [--items N] [--checkpoints N] …

Items lie in clusters whose centres move at every checkpoint. Up to each checkpoint, a share of the items is inserted
near the centres' new places, as many of the oldest are deleted, and a quarter as many searches are made: insert :
delete : search = 4 : 4 : 1. Changes reach a Searcher as deltas that pass their gates, and a full refresh (`publish`)
is made when `refresh_due` says so. At every checkpoint recall@10 is measured against exact search, beside Faiss built
from scratch of the same items, with as many lists and the same nprobe. Costs are CPU seconds of one thread: writing a
delta, its gates, its commit, and following it, relative to a cold build by `publish`; `before_the_first_delta_cpu_s`
is what a searcher does once per version. `ratio` is the lowest recall of a
checkpoint; the cost of a delta of 1 % may be 2 % of a cold build.
"""

import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import faiss
import numpy as np

from retrieval.arrays import Float32Array, Int64Array
from retrieval.config import IndexConfig
from retrieval.deltas.base_vectors import BaseVectors
from retrieval.deltas.chain import DeltaChain
from retrieval.deltas.delta import write_items
from retrieval.deltas.gates import Norms, check_delta
from retrieval.deltas.limits import ChangeMeter, Due, refresh_due
from retrieval.indexes.exact import exact_top_k, recall_at_k
from retrieval.indexes.parts import read_ids
from retrieval.ranks import OneRank
from retrieval.versions.probe import DeltaProbe
from retrieval.versions.publish import publish
from retrieval.versions.searcher import LoadedVersion, Searcher
from retrieval.versions.store import VersionStore
from tests.benchmarks.support.command import case_of, finish
from tests.benchmarks.support.index_version import centroids_of, index_of

REQUIRED_RECALL = 0.95
ALLOWED_COST = 0.02
K = 10
_COSTS_OF = (0.0001, 0.001, 0.01, 0.02)
_PER_CLUSTER = 60
_NOISE = 0.6


@dataclass(frozen=True)
class Case:
    """What changes, and how fast.

    Attributes:
        items: at any time.
        dim: columns of a vector.
        checkpoints: how often recall is measured.
        turnover: share of the items that are inserted, and share that are deleted, up to each checkpoint.
        deltas: that these changes are divided among.
        drift: distance that a centre moves up to each checkpoint, in standard deviations of a cluster.
        queries: at most so many searches are compared with exact ones.
    """

    items: int = 1_000_000
    dim: int = 64
    checkpoints: int = 6
    turnover: float = 0.01
    deltas: int = 5
    drift: float = 0.25
    queries: int = 1000


def main() -> int:
    case, file = case_of(Case, __doc__)
    return finish(measure(case), file)


def measure(case: Case) -> dict[str, Any]:
    """Build, then insert, delete, and search up to each checkpoint."""
    faiss.omp_set_num_threads(1)
    stream, config = _Stream(case), IndexConfig(device="cpu", recall_k=K)
    with tempfile.TemporaryDirectory() as folder:
        served = _Served(Path(folder), config)
        cold_s = served.refresh(stream)
        costs = {f"{share:.2%}": served.cost_of(stream, int(case.items * share)) for share in _COSTS_OF}
        served.forget_deltas()
        rows = []
        for checkpoint in range(1, case.checkpoints + 1):
            stream.move_centres()
            deltas_s = sum(served.apply(stream, *stream.change()) for _ in range(case.deltas))
            row = {
                "checkpoint": checkpoint,
                **served.place(),
                **_recalls(served, stream, case),
                "deltas_cpu_s": deltas_s,
            }
            due = served.due()
            if due is not None:
                row |= {"refresh": due.in_words(), "refresh_cpu_s": served.refresh(stream)}
                row["recall@10_after_refresh"] = _recalls(served, stream, case, bare=False)["recall@10"]
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    recalls = [row[name] for row in rows for name in ("recall@10", "recall@10_after_refresh") if name in row]
    cost = costs["1.00%"] / cold_s
    return {
        "name": "drift",
        "baseline": "faiss built from scratch at each checkpoint",
        "ratio": min(recalls),
        "required": REQUIRED_RECALL,
        "cost_of_1%": cost,
        "allowed_cost": ALLOWED_COST,
        "passed": min(recalls) >= REQUIRED_RECALL and cost <= ALLOWED_COST,
        "cold_cpu_s": cold_s,
        "delta_cpu_s": costs,
        "before_the_first_delta_cpu_s": served.first_s,
        "checkpoints": rows,
        "settings": vars(case),
    }


class _Stream:
    """The items at the moment, oldest first."""

    def __init__(self, case: Case) -> None:
        self._case, self._rng = case, np.random.default_rng(0)
        self._centres = self._normal(max(3, case.items // _PER_CLUSTER))
        self.ids, self.vectors = np.arange(case.items), self.new(case.items)

    def move_centres(self) -> None:
        """Each in a direction of its own."""
        step = self._normal(self._centres.shape[0])
        step /= np.linalg.norm(step, axis=1, keepdims=True)
        self._centres += step * np.float32(self._case.drift * _NOISE * np.sqrt(self._case.dim))

    def new(self, items: int) -> Float32Array:
        """Unit vectors near the centres."""
        vectors = self._normal(items)
        vectors *= np.float32(_NOISE)
        vectors += self._centres[self._rng.integers(0, self._centres.shape[0], items)]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def change(self) -> tuple[Int64Array, Float32Array, Int64Array]:
        """Ids and vectors that are inserted, and ids that are deleted: of one delta."""
        items = max(1, int(self._case.items * self._case.turnover) // self._case.deltas)
        ids, vectors, gone = np.arange(items) + self.ids[-1] + 1, self.new(items), self.ids[:items]
        self.ids = np.concatenate([self.ids[items:], ids])
        self.vectors = np.concatenate([self.vectors[items:], vectors])
        return ids, vectors, gone

    def queries(self) -> Float32Array:
        """Near items of the moment; a quarter as many as were inserted."""
        queries = max(1, int(self._case.items * self._case.turnover) // 4)
        near = self.vectors[self._rng.integers(0, self.ids.shape[0], min(queries, self._case.queries))]
        near = near + np.float32(0.1) * self._normal(near.shape[0])
        near /= np.linalg.norm(near, axis=1, keepdims=True)
        return np.ascontiguousarray(near, np.float32)

    def _normal(self, rows: int) -> Float32Array:
        return self._rng.standard_normal((rows, self._case.dim), dtype=np.float32)


class _Served:
    """The live version with its deltas: both the builder's side and a Searcher."""

    def __init__(self, folder: Path, config: IndexConfig) -> None:
        self._folder, self._config = folder, config
        self._store = VersionStore(folder / "index")
        self.first_s = 0.0
        """What a searcher does once per version, when the first delta comes."""
        self.searcher = Searcher(self._store.root)

    @property
    def loaded(self) -> LoadedVersion:
        assert self.searcher.loaded is not None
        return self.searcher.loaded

    def place(self) -> dict[str, Any]:
        """Where the searcher is."""
        nprobe = int(self.loaded.version.manifest["nprobe"])
        return {"version": self.loaded.version.name, "delta": self.loaded.delta_number, "nprobe": nprobe}

    def refresh(self, stream: _Stream) -> float:
        """CPU seconds of a full refresh."""
        started = time.process_time()
        with tempfile.TemporaryDirectory(dir=self._folder) as attempt:
            items = iter([(stream.ids, stream.vectors)])
            report = publish(
                self._store, Path(attempt), items, stream.queries(), self._config, metadata={}, seed=1
            )
        used = time.process_time() - started
        assert report.version is not None, report.gate.why_not()
        self._store.prune(1)
        self.searcher.refresh()
        self._begin_deltas()
        return used

    def apply(self, stream: _Stream, ids: Int64Array, vectors: Float32Array, gone: Int64Array) -> float:
        """CPU seconds of a delta, from its vectors to a searcher that uses it."""
        started = time.process_time()
        report = check_delta(OneRank(), ids, vectors, self._norms, self._probe.finds, self._config)
        assert report.passed, report.why_not()
        folder = self._chain.begin()
        write_items(folder.path, 0, ids, vectors, gone)
        self._chain.commit(folder, {})
        assert self.searcher.refresh(), "the searcher did not follow a delta"
        self._change = self._meter.add(ids, vectors, gone)
        return time.process_time() - started

    def cost_of(self, stream: _Stream, items: int) -> float:
        """CPU seconds of one delta of so many new items, and a quarter as many deleted ones, on the full version."""
        self.forget_deltas()
        ids = np.arange(max(1, items)) + stream.ids[-1] + 1
        return self.apply(stream, ids, stream.new(ids.shape[0]), stream.ids[: ids.shape[0] // 4])

    def forget_deltas(self) -> None:
        """Back to the full version."""
        self._chain.remove()
        self.searcher.refresh()
        self._begin_deltas()

    def due(self) -> Due | None:
        """The limit that the deltas have passed."""
        return refresh_due(self._change, self._config)

    def _begin_deltas(self) -> None:
        started, none = time.process_time(), np.empty(0, np.int64)
        self.loaded.with_items(none, np.empty((0, 0), np.float32), none)
        self.first_s = time.process_time() - started
        self._chain = DeltaChain(self._store, self.loaded.version)
        version, files = self.loaded.version, self._item_files()
        self._norms, self._probe = Norms.of(files), DeltaProbe(version)
        ids = np.concatenate([read_ids(file) for file in files])
        self._meter = ChangeMeter(self._probe.list_lengths, self._probe.lists_of, ids, BaseVectors(files))

    def _item_files(self) -> list[Path]:
        version = self.loaded.version
        return [version.file(name) for name in version.files("items-")]


def _recalls(served: _Served, stream: _Stream, case: Case, *, bare: bool = True) -> dict[str, float]:
    queries = stream.queries()
    wanted = exact_top_k(queries, stream.vectors, K)
    found, _ = served.searcher.search(queries, K)
    recalls = {"recall@10": recall_at_k(found, stream.ids[wanted])}
    if bare:
        config = replace(IndexConfig(device="cpu"), build_iterations=4, nlist=served.loaded.index.nlist)
        index = index_of(stream.vectors, centroids_of(stream.vectors, config), config)
        nprobe = int(served.loaded.version.manifest["nprobe"])
        recalls["baseline_recall@10"] = recall_at_k(index.search(queries, K, nprobe)[0], wanted)
    return recalls


if __name__ == "__main__":
    sys.exit(main())
