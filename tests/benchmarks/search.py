"""Searches through the Searcher against bare Faiss on the same index, at equal recall.

    python tests/benchmarks/search.py [--json FILE] [--items N] [--dim D] [--kind KIND] [--batch Q] [--runs N] …

A version of synthetic items in clusters is written to a store and opened by a Searcher. The baseline is the index of
that file, read by Faiss, with the same nprobe: the fewest lists that reach recall@50 of .96 against exact search. With
seen items excluded, the baseline fetches as many items more and drops none, at the fewest lists with which its results
would be as good. One thread, alternating runs, queries per second of CPU time: of batches and of single queries.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import faiss
import numpy as np

from retrieval.arrays import Float32Array, Int64Array
from retrieval.config import IndexConfig
from retrieval.indexes.exact import exact_top_k, recall_at_k
from retrieval.indexes.ivf import IvfIndex
from retrieval.indexes.kinds import parameters
from retrieval.versions.searcher import Searcher
from retrieval.versions.shards import WHOLE_INDEX
from retrieval.versions.tuning import choose_nprobe
from tests.benchmarks.support.clusters import Clusters
from tests.benchmarks.support.command import case_of, finish
from tests.benchmarks.support.index_version import centroids_of, index_of, publish_index

REQUIRED_RATIO = 0.9
REQUIRED_RECALL = 0.95
K = 50


@dataclass(frozen=True)
class Case:
    """What is searched, and how."""

    items: int = 1_000_000
    dim: int = 64
    kind: str = "ivf_fp16"
    queries: int = 512
    batch: int = 64
    seen: int = 100
    runs: int = 5


def main() -> int:
    case, file = case_of(Case, __doc__)
    return finish(measure(case), file)


def measure(case: Case) -> dict[str, Any]:
    """Builds, tunes, and times both."""
    faiss.omp_set_num_threads(1)
    vectors, queries = Clusters(case.items, case.dim).draw(case.queries)
    # Users have seen items near to what they are looking for.
    nearest = exact_top_k(queries, vectors, K + 4 * case.seen)
    rng = np.random.default_rng(1)
    seen = [rng.choice(row[: 4 * case.seen], case.seen, replace=False) for row in nearest]
    unseen = np.stack([row[~np.isin(row, some)][:K] for row, some in zip(nearest, seen, strict=True)])
    with tempfile.TemporaryDirectory() as folder:
        config = _config(case.kind)
        index = index_of(vectors, centroids_of(vectors, config), config)
        nprobe, recall = choose_nprobe(index, queries, nearest[:, :K], config)
        store = publish_index(Path(folder), index, np.arange(case.items), vectors, nprobe)
        searcher = Searcher(store.root)
        loaded = searcher.loaded
        assert loaded is not None
        bare = IvfIndex.load(loaded.version.file(WHOLE_INDEX), case.kind)
        found = searcher.search(queries, K)[0]
        _require_equal(found, bare.search(queries, K, nprobe)[0])
        rest = searcher.search(queries, K, exclude=seen)[0]
        recall_of_rest = recall_at_k(rest, unseen)
        nprobe_of_rest = _fewest_lists(bare, queries, seen, unseen, recall_of_rest)

        def bare_search(query_QD: Float32Array, k: int, lists: int) -> None:
            bare._through.search(query_QD, k, params=parameters(bare._through, k, lists))

        timings = {
            "batches": paired_rates(
                case,
                case.batch,
                lambda some: searcher.search(queries[some], K),
                lambda some: bare_search(queries[some], K, nprobe),
            ),
            "single queries": paired_rates(
                case,
                1,
                lambda some: searcher.search(queries[some], K),
                lambda some: bare_search(queries[some], K, nprobe),
            ),
            "seen items excluded": paired_rates(
                case,
                case.batch,
                lambda some: searcher.search(queries[some], K, exclude=seen[some]),
                lambda some: bare_search(queries[some], K + case.seen, nprobe_of_rest),
            ),
        }
    ratios = {
        name: statistics.median(ours / theirs for ours, theirs in pairs) for name, pairs in timings.items()
    }
    ratio = ratios["batches"]
    return {
        "name": "search",
        "baseline": "faiss search of the same index with the same nprobe",
        "ratio": ratio,
        "ratio_single_queries": ratios["single queries"],
        "ratio_excluding": ratios["seen items excluded"],
        "required": REQUIRED_RATIO,
        "recall@50": recall,
        "recall@50_excluding": recall_of_rest,
        "passed": ratio >= REQUIRED_RATIO and recall >= REQUIRED_RECALL,
        "queries_per_s": {
            name: statistics.median(ours for ours, _ in pairs) for name, pairs in timings.items()
        },
        "baseline_queries_per_s": {
            name: statistics.median(theirs for _, theirs in pairs) for name, pairs in timings.items()
        },
        "nlist": index.nlist,
        "nprobe": nprobe,
        "baseline_nprobe_excluding": nprobe_of_rest,
        "settings": vars(case),
    }


def _config(kind: str) -> IndexConfig:
    return IndexConfig(
        kind=kind,  # type: ignore[arg-type]
        device="cpu",
        recall_k=K,
        recall_target=REQUIRED_RECALL + 0.01,
        build_iterations=4,
    )


def _require_equal(ours: Int64Array, theirs: Int64Array) -> None:
    whole = (theirs >= 0).all(axis=1)  # the Searcher reads more lists for a query that too few items answer
    if not np.array_equal(ours[whole], theirs[whole]):
        raise RuntimeError("the Searcher's results are not those of its index")


def _fewest_lists(
    index: IvfIndex, queries: Float32Array, seen: list[Int64Array], unseen: Int64Array, recall: float
) -> int:
    def enough(nprobe: int) -> bool:
        found = index.search(queries, K + seen[0].shape[0], nprobe)[0]
        kept = np.stack([_first(row[~np.isin(row, some)]) for row, some in zip(found, seen, strict=True)])
        return recall_at_k(kept, unseen) >= recall - 1e-9

    low, high = 1, 1
    while high < index.nlist and not enough(high):
        low, high = high + 1, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high


def _first(row: Int64Array) -> Int64Array:
    return np.pad(row[:K], (0, max(0, K - row.shape[0])), constant_values=-1)


def paired_rates(
    case: Case, batch: int, ours: Callable[[slice], object], theirs: Callable[[slice], object]
) -> list[tuple[float, float]]:
    """Queries per CPU second of both, run by run."""

    def rate(search: Callable[[slice], object]) -> float:
        started = time.process_time()
        for start in range(0, case.queries, batch):
            search(slice(start, start + batch))
        return case.queries / (time.process_time() - started)

    rate(ours), rate(theirs)
    return [(rate(ours), rate(theirs)) for _ in range(case.runs)]


if __name__ == "__main__":
    sys.exit(main())
