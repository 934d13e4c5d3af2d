"""Searches through a version and its deltas against bare Faiss on an index of the same items, at the same nprobe.

    python tests/benchmarks/delta_search.py [--json FILE] [--items N] [--dim D] [--kind KIND] [--runs N] …

A live version of synthetic items in clusters gets deltas in ten equal steps: of each share, half are new items, half
have moved to other vectors, and a quarter as many are deleted. The baseline is one Faiss index of exactly the items
that are left, with the same centroids and nprobe, the fewest lists that reach recall@50 of .96 on the version. One
thread, alternating runs, queries per second of CPU time: of batches and of single queries.
"""

import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import faiss
import numpy as np

from retrieval.arrays import Float32Array, Int64Array
from retrieval.config import IndexConfig
from retrieval.deltas.chain import DeltaChain
from retrieval.deltas.delta import write_items
from retrieval.indexes.coarse import assign_lists
from retrieval.indexes.exact import exact_top_k, recall_at_k
from retrieval.indexes.kinds import parameters
from retrieval.versions.searcher import Searcher
from retrieval.versions.tuning import choose_nprobe
from tests.benchmarks.search import REQUIRED_RECALL, K, paired_rates
from tests.benchmarks.search import Case as SearchCase
from tests.benchmarks.support.clusters import Clusters
from tests.benchmarks.support.command import case_of, finish
from tests.benchmarks.support.index_version import centroids_of, index_of, publish_index

REQUIRED_RATIO = 0.85
SHARES = (0.01, 0.02)
_STEPS = 10


@dataclass(frozen=True)
class Case(SearchCase):
    """What is searched, and how."""

    seen: int = 0


def main() -> int:
    case, file = case_of(Case, __doc__)
    return finish(measure(case), file)


def measure(case: Case) -> dict[str, Any]:
    """Builds, tunes, applies deltas, and times both at each share."""
    faiss.omp_set_num_threads(1)
    added = int(case.items * max(SHARES))
    drawn, queries = Clusters(case.items + added, case.dim).draw(case.queries)
    vectors, pool = drawn[: case.items], drawn[case.items :]
    config = IndexConfig(
        kind=case.kind,  # type: ignore[arg-type]
        device="cpu",
        recall_k=K,
        recall_target=REQUIRED_RECALL + 0.01,
        build_iterations=4,
    )
    centroids = centroids_of(vectors, config)
    assigned = assign_lists(vectors, centroids, config)
    index = index_of(vectors, centroids, config, assigned)
    nprobe, _ = choose_nprobe(index, queries, exact_top_k(queries, vectors, K), config)
    shares: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = publish_index(Path(folder), index, np.arange(case.items), vectors, nprobe)
        items = _Items(vectors, assigned)
        searcher, version = Searcher(store.root), store.current()
        assert version is not None
        chain = DeltaChain(store, version)
        for share in (0.0, *SHARES):
            before = items.changed
            for step in range(1, _STEPS + 1):
                until = int(case.items * share * step / _STEPS)
                items.commit(chain, pool, max(until, before))
                searcher.refresh()
            items.assign(lambda some: assign_lists(some, centroids, config))
            current, lists = items.current()
            bare = index_of(current, centroids, config, lists)
            shares[f"{share:.0%}"] = _compare(case, searcher, items.ids(), current, bare, queries, nprobe)
    ratio = min(shares[f"{share:.0%}"]["ratio"] for share in SHARES)
    recall = min(shares[f"{share:.0%}"]["recall@50"] for share in SHARES)
    return {
        "name": "delta_search",
        "baseline": "faiss search of one index of the same items, with the same centroids and nprobe",
        "ratio": ratio,
        "ratio_single_queries": min(shares[f"{share:.0%}"]["ratio_single_queries"] for share in SHARES),
        "required": REQUIRED_RATIO,
        "recall@50": recall,
        "passed": ratio >= REQUIRED_RATIO and recall >= REQUIRED_RECALL,
        "shares": shares,
        "nlist": index.nlist,
        "nprobe": nprobe,
        "settings": vars(case),
    }


class _Items:
    """All items that there ever were, by id; a vector that moves replaces the old one."""

    def __init__(self, vectors: Float32Array, assigned: Int64Array) -> None:
        self._vectors, self._assigned = vectors.copy(), assigned.copy()
        self._deleted = np.zeros(vectors.shape[0], np.bool_)
        self._order = np.random.default_rng(1).permutation(vectors.shape[0])
        self._unassigned: list[int] = []
        self.changed = 0

    def commit(self, chain: DeltaChain, pool: Float32Array, until: int) -> None:
        """A delta with the vectors of `pool` from the last one's to `until`: every other one a new item's."""
        start, self.changed = self.changed, until
        if until == start:
            return
        numbers = np.arange(start, until)
        new = numbers % 2 == 1
        old = self._order[numbers]
        ids = np.where(new, self._vectors.shape[0] + np.cumsum(new) - 1, old)
        gone = self._order[-1 - numbers[numbers % 4 == 0]]
        grown = np.zeros((int(new.sum()), pool.shape[1]), np.float32)
        self._vectors = np.concatenate([self._vectors, grown])
        self._assigned = np.concatenate([self._assigned, np.zeros(grown.shape[0], np.int64)])
        self._deleted = np.concatenate([self._deleted, np.zeros(grown.shape[0], np.bool_)])
        self._vectors[ids], self._deleted[gone] = pool[numbers], True
        self._unassigned += ids.tolist()
        folder = chain.begin()
        write_items(folder.path, 0, ids, pool[numbers], gone)
        chain.commit(folder, {})

    def assign(self, assign: Callable[[Float32Array], Int64Array]) -> None:
        """Find the lists of what moved."""
        if self._unassigned:
            self._assigned[self._unassigned] = assign(np.ascontiguousarray(self._vectors[self._unassigned]))
            self._unassigned = []

    def ids(self) -> Int64Array:
        """Of the items that are left."""
        return np.flatnonzero(~self._deleted)

    def current(self) -> tuple[Float32Array, Int64Array]:
        """Their vectors and lists."""
        return self._vectors[~self._deleted], self._assigned[~self._deleted]


def _compare(
    case: Case,
    searcher: Searcher,
    ids: Int64Array,
    current: Float32Array,
    bare: Any,
    queries: Float32Array,
    nprobe: int,
) -> dict[str, Any]:
    wanted = exact_top_k(queries, current, K)
    ours, theirs = searcher.search(queries, K)[0], bare.search(queries, K, nprobe)[0]

    def bare_search(query_QD: Float32Array) -> None:
        bare._through.search(query_QD, K, params=parameters(bare._through, K, nprobe))

    rates = {
        batch: paired_rates(
            replace(case, batch=batch),
            batch,
            lambda some: searcher.search(queries[some], K),
            lambda some: bare_search(queries[some]),
        )
        for batch in (case.batch, 1)
    }
    of_batches, of_single = (
        statistics.median(ours / theirs for ours, theirs in pairs) for pairs in rates.values()
    )
    return {
        "ratio": of_batches,
        "ratio_single_queries": of_single,
        "recall@50": recall_at_k(ours, ids[wanted]),
        "baseline_recall@50": recall_at_k(theirs, wanted),
        "queries_per_s": statistics.median(ours for ours, _ in rates[case.batch]),
        "baseline_queries_per_s": statistics.median(theirs for _, theirs in rates[case.batch]),
    }


if __name__ == "__main__":
    sys.exit(main())
