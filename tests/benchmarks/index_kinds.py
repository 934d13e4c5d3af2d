"""The kinds of index side by side: recall@k, queries per second, bytes of memory an item, time to build.

    python tests/benchmarks/index_kinds.py [--json FILE] [--items N] [--dim D] [--noise S] [--norms S] [--runs N] …

All kinds get the same synthetic items, in clusters that overlap, and the same centroids. Each gets the fewest lists
that bring recall@k to .95, at most half of all. One thread, batches, alternating runs, queries per second of CPU time.
`build_cpu_s` is k-means, the assignment of items to lists, which all kinds share, and the kind's own codes.
The baseline is ivf_flat: `ratio` is that of ivf_fp16, the default.
"""

import os
import statistics
import sys
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
from retrieval.indexes.coarse import assign_lists, train_centroids
from retrieval.indexes.exact import exact_top_k
from retrieval.indexes.ivf import IvfBuilder, IvfIndex, empty_index, lists_for
from retrieval.indexes.kinds import codec_sample
from retrieval.versions.tuning import choose_nprobe
from tests.benchmarks.support.clusters import Clusters
from tests.benchmarks.support.command import case_of, finish

KINDS: dict[str, dict[str, Any]] = {
    "ivf_flat": {"kind": "ivf_flat"},
    "ivf_fp16": {"kind": "ivf_fp16"},
    "ivf_sq8": {"kind": "ivf_sq8"},
    "ivf_pqfs, refine=fp16": {"kind": "ivf_pqfs", "refine": "fp16"},
    "ivf_pqfs, refine=sq8": {"kind": "ivf_pqfs", "refine": "sq8"},
}
_POINTS_PER_LIST = 64


@dataclass(frozen=True)
class Case:
    """What is indexed, and how it is searched."""

    items: int = 200_000
    k: int = 10
    dim: int = 64
    noise: float = 1.0
    norms: float = 0.0
    queries: int = 512
    batch: int = 64
    target: float = 0.95
    refine_factor: int = IndexConfig.refine_factor
    runs: int = 5


def main() -> int:
    case, file = case_of(Case, __doc__)
    result = measure(case)
    for name, row in result["kinds"].items():
        print(
            f"{name:22} recall@{result['settings']['k']} {row['recall']:.3f}  nprobe {row['nprobe']:4}  "
            f"{row['queries_per_s']:8,.0f} queries/s  {row['bytes_per_item']:6.1f} bytes/item  "
            f"built in {row['build_cpu_s']:.1f} s"
        )
    return finish(result, file)


def measure(case: Case) -> dict[str, Any]:
    """One row for each kind."""
    faiss.omp_set_num_threads(1)
    clusters = Clusters(case.items, case.dim, case.noise, case.norms)
    vectors, queries = clusters.draw(case.queries)
    wanted = exact_top_k(queries, vectors, case.k)
    config = IndexConfig(
        device="cpu",
        recall_k=case.k,
        recall_target=case.target,
        min_recall=0.0,
        build_iterations=4,
        refine_factor=case.refine_factor,
    )
    started = time.process_time()
    lists = lists_for(case.items, config)
    sample = np.random.default_rng(0).permutation(case.items)[: _POINTS_PER_LIST * lists]
    centroids = train_centroids(np.ascontiguousarray(vectors[np.sort(sample)]), lists, config, seed=1)
    assigned = assign_lists(vectors, centroids, config)
    shared = time.process_time() - started
    rows: dict[str, dict[str, Any]] = {}
    searched: dict[str, tuple[IvfIndex, int]] = {}
    for name, settings in KINDS.items():
        own = replace(config, **settings)
        started = time.process_time()
        index = _built(own, centroids, vectors, assigned)
        own_s = time.process_time() - started
        nprobe, recall = choose_nprobe(index, queries, wanted, own)
        stored = faiss.serialize_index(index._through).nbytes
        rows[name] = {
            "recall": recall,
            "nprobe": nprobe,
            "bytes_per_item": stored / case.items,
            "build_cpu_s": shared + own_s,
            "queries_per_s": [],
        }
        searched[name] = index, nprobe
        print(
            f"{name}: nprobe {nprobe}, recall {recall:.3f}, built in {shared + own_s:.0f} s", file=sys.stderr
        )
    for _ in range(case.runs):
        for name, (index, nprobe) in searched.items():
            rows[name]["queries_per_s"].append(_rate(index, queries, nprobe, case))
    for row in rows.values():
        row["queries_per_s"] = statistics.median(row["queries_per_s"])
    return {
        "name": "index_kinds",
        "baseline": "ivf_flat with the same centroids, at the recall that is tuned for",
        "ratio": rows["ivf_fp16"]["queries_per_s"] / rows["ivf_flat"]["queries_per_s"],
        "kinds": rows,
        "nlist": lists,
        "settings": vars(case),
    }


def _built(
    config: IndexConfig, centroids: Float32Array, vectors: Float32Array, assigned: Int64Array
) -> IvfIndex:
    sample = codec_sample(vectors, config.kind)
    builder = IvfBuilder(empty_index(config, centroids, sample), config.kind)
    builder.add(vectors, assigned)
    return builder.index()


def _rate(index: IvfIndex, queries: Float32Array, nprobe: int, case: Case) -> float:
    k, batch = case.k, case.batch
    index.search(queries[:batch], k, nprobe)
    started = time.process_time()
    for start in range(0, queries.shape[0], batch):
        index.search(queries[start : start + batch], k, nprobe)
    return queries.shape[0] / (time.process_time() - started)


if __name__ == "__main__":
    sys.exit(main())
