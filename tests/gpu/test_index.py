"""The index on a GPU: as good as the CPU's, written as the CPU's, searched by many threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from retrieval.config import IndexConfig
from retrieval.indexes.exact import exact_top_k, recall_at_k
from retrieval.indexes.gpu_index import GpuIvfIndex, build_index
from retrieval.indexes.ivf import IvfIndex
from retrieval.indexes.parts import write_part
from retrieval.versions.publish import publish
from retrieval.versions.searcher import Searcher
from retrieval.versions.store import VersionStore
from tests.unit.retrieval.conftest import clustered

KINDS = ["ivf_flat", "ivf_fp16", "ivf_sq8"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norms", ["unit", "uneven"])
def test_built_on_the_gpu_it_is_as_good_and_its_file_gives_the_same_neighbours(
    real_gpu, tmp_path, kind, norms
):
    vectors, queries = clustered(50_000, 64)
    if norms == "uneven":
        scale = np.random.default_rng(2).lognormal(0, 0.5, (vectors.shape[0], 1))
        vectors = np.ascontiguousarray(vectors * scale, np.float32)
    wanted = exact_top_k(queries, vectors, 10)
    assert recall_at_k(exact_top_k(queries, vectors, 10, gpu=0), wanted) > 0.999
    there = build_index(vectors, IndexConfig(kind=kind, device="cuda"), seed=1)
    assert isinstance(there, GpuIvfIndex)
    there.save(tmp_path / "index")
    here = IvfIndex.load(tmp_path / "index", kind)
    nprobe = there.nlist // 4
    (found, scores), (read, read_scores) = (index.search(queries, 10, nprobe) for index in (there, here))
    assert recall_at_k(found, wanted) >= 0.95
    assert recall_at_k(found, read) >= 0.99
    np.testing.assert_allclose(scores, read_scores, atol=2e-3 * np.abs(read_scores).max())
    np.testing.assert_array_equal(there.list_lengths(), here.list_lengths())
    assert there.scanned(queries, nprobe) == pytest.approx(here.scanned(queries, nprobe), rel=0.01)
    back = GpuIvfIndex.copy_of(here, 0)
    assert recall_at_k(back.search(queries, 10, nprobe)[0], found) > 0.999


def test_beyond_the_limits_of_a_gpu_the_cpu_answers(real_gpu):
    vectors, queries = clustered(20_000, 32)
    index = build_index(vectors, IndexConfig(device="cuda"), seed=1)
    assert (index.search(queries[:4], 3000, index.nlist)[0] >= 0).all()
    with pytest.raises(RuntimeError):
        index._index.search(queries[:4], 3000)


@pytest.mark.parametrize("kind", KINDS)
def test_a_version_is_tuned_gated_and_served_by_many_threads(real_gpu, tmp_path, kind):
    vectors, queries = clustered(20_000, 64)
    store, part = VersionStore(tmp_path / "index"), tmp_path / "part.arrow"
    write_part(part, np.arange(vectors.shape[0]) * 10, vectors)
    config = IndexConfig(kind=kind, device="cuda")
    report = publish(store, [part], queries, config, extra_files={}, metadata={}, seed=1)
    assert report.version is not None
    assert report.recall >= 0.95
    here, there = Searcher(store.root), Searcher(store.root, gpu=0)
    wanted = here.search(queries, 10)[0]
    unwanted = [row[:3] for row in wanted]
    start = threading.Barrier(4)

    def search(_: int) -> tuple:
        start.wait()
        return there.search(queries, 10)[0], there.search(queries, 10, exclude=unwanted)[0]

    with ThreadPoolExecutor(4) as pool:
        for found, without in pool.map(search, range(4)):
            assert recall_at_k(found, wanted) >= 0.99
            assert not any(np.isin(a, b).any() for a, b in zip(without, unwanted, strict=True))
