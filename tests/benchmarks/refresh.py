"""A full refresh of 1 M items against bare Faiss on ready vectors and the bare item tower: CPU seconds, one thread.

    python tests/benchmarks/refresh.py [--json FILE] [--items N] [--queries N]

The baseline is what no refresh can do without: a forward pass of the item tower over all items, their rows ready, and
Faiss's own `train` and `add` of an IVF index with fp16 codes on all vectors, with the same lists and iterations, and at
most 256 points a list, which is Faiss's default. The refresh is `publish`: the same forward pass in slices, the file
of items, the sample, k-means, lists, exact answers, tuning, gates, checksums, and the commit. `ratio` is the CPU
seconds of the baseline over those of a refresh without a live version, so it must be at least 1 / 1.15. `ratio_warm`
is a second refresh, of vectors that have moved a little, over the first; at most 0.6 is asked for. Vectors are in
clusters; the tower's output is not used, since it is not trained.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import faiss
import numpy as np
import torch

from model.cl_epidtn import cl_epidtn
from model.config import ModelConfig
from model.features import ItemInputs
from model.two_tower import TwoTower
from retrieval.arrays import Float32Array, Int64Array
from retrieval.config import IndexConfig
from retrieval.indexes.ivf import lists_for
from retrieval.versions.publish import PublishReport, publish
from retrieval.versions.store import VersionStore
from tests.benchmarks.support.clusters import Clusters
from tests.benchmarks.support.command import benchmark_parser, finish

REQUIRED_RATIO = 1 / 1.15
ALLOWED_WARM = 0.6
_SLICE, _CATEGORIES = 8192, 20
Result = TypeVar("Result")


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=2048)
    arguments = parser.parse_args()
    return finish(measure(arguments.items, arguments.queries), arguments.json)


def measure(items: int, queries: int) -> dict[str, Any]:
    """CPU seconds of the baseline, of a cold refresh, and of a warm one."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    tower = Tower()
    vectors, query_QD = Clusters(items, tower.dim).draw(queries)
    config = IndexConfig(device="cpu")
    bare_s, _ = _cpu_seconds(lambda: (tower.encode_all(items), _bare_index(vectors, config)))
    with tempfile.TemporaryDirectory() as folder:
        store = VersionStore(Path(folder) / "index")
        cold_s, cold = _cpu_seconds(lambda: _refresh(store, folder, tower, vectors, query_QD, config))
        drift = np.random.default_rng(2).standard_normal(vectors.shape[1], np.float32)
        vectors += 0.05 * np.roll(vectors, 1, axis=1) + 0.01 * drift
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        warm_s, warm = _cpu_seconds(lambda: _refresh(store, folder, tower, vectors, query_QD, config))
    ratio, ratio_warm = bare_s / cold_s, warm_s / cold_s
    return {
        "name": "refresh",
        "baseline": "faiss train and add on ready vectors, and the forward pass of the item tower",
        "items": items,
        "dim": tower.dim,
        "ratio": ratio,
        "required": REQUIRED_RATIO,
        "ratio_warm": ratio_warm,
        "allowed_warm": ALLOWED_WARM,
        "passed": ratio >= REQUIRED_RATIO and ratio_warm <= ALLOWED_WARM,
        "baseline_cpu_s": bare_s,
        "cold_cpu_s": cold_s,
        "warm_cpu_s": warm_s,
        "cold": _described(cold),
        "warm": _described(warm),
    }


class Tower:
    """The default item tower with rows that are ready."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = ModelConfig()
        self.dim = config.dim
        self._model: TwoTower = cl_epidtn(config, 0).eval()
        self._rows_UD = torch.randn(1 + _SLICE + _CATEGORIES, config.dim)
        self._rows_UD[0] = 0.0

    def encode_all(self, items: int) -> None:
        """All slices of so many items."""
        for start in range(0, items, _SLICE):
            self.encode(min(_SLICE, items - start))

    @torch.no_grad()
    def encode(self, items: int) -> None:
        """One slice."""
        number_C = torch.arange(items)
        category_CK = 1 + _SLICE + torch.stack([number_C % _CATEGORIES, number_C % 7], dim=1)
        none = torch.zeros(items, dtype=torch.bool)
        inputs = ItemInputs(number_C, 1 + number_C, category_CK, none, torch.zeros(0, dtype=torch.int64))
        self._model.encode_items(self._rows_UD, inputs)


def _bare_index(vectors: Float32Array, config: IndexConfig) -> faiss.Index:
    dim = vectors.shape[1]
    by_inner_product, lists = faiss.METRIC_INNER_PRODUCT, lists_for(vectors.shape[0], config)
    quantizer, codes = faiss.IndexFlatIP(dim), faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexIVFScalarQuantizer(quantizer, dim, lists, codes, by_inner_product, False)
    index.cp.niter, index.cp.spherical = config.build_iterations, True
    index.train(vectors)
    index.add(vectors)
    return index


def _refresh(
    store: VersionStore,
    folder: str,
    tower: Tower,
    vectors: Float32Array,
    query_QD: Float32Array,
    config: IndexConfig,
) -> PublishReport:
    def items() -> Iterator[tuple[Int64Array, Float32Array]]:
        for start in range(0, vectors.shape[0], _SLICE):
            some = vectors[start : start + _SLICE]
            tower.encode(some.shape[0])
            yield np.arange(start, start + some.shape[0]), some

    attempt = Path(tempfile.mkdtemp(dir=folder))
    return publish(store, attempt, items(), query_QD, config, metadata={}, seed=1)


def _cpu_seconds(work: Callable[[], Result]) -> tuple[float, Result]:
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def _described(report: PublishReport) -> dict[str, Any]:
    return report.figures() | {"version": report.version.name if report.version else report.gate.why_not()}


if __name__ == "__main__":
    sys.exit(main())
