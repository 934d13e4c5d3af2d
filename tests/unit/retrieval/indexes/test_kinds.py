"""Every kind: in slices, in shards, through a file, by many threads; and what makes ivf_pqfs what it is."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from retrieval.config import IndexConfig
from retrieval.indexes.coarse import assign_lists, train_centroids
from retrieval.indexes.exact import exact_top_k, recall_at_k
from retrieval.indexes.ivf import IvfBuilder, IvfIndex, empty_index, merged
from retrieval.indexes.kinds import codec_sample, sub_vectors
from retrieval.versions.tuning import choose_nprobe
from tests.unit.retrieval.conftest import clustered

KINDS = ["ivf_flat", "ivf_fp16", "ivf_sq8", "ivf_pqfs"]
CUTS = [0, 700, 700, 1531, 3000]


def prepared(kind, items=3000, dim=32, **settings):
    vectors, queries = clustered(items, dim)
    config = IndexConfig(kind=kind, device="cpu", **settings)
    centroids = train_centroids(vectors, 40, config, seed=1)
    return vectors, queries, centroids, empty_index(config, centroids, codec_sample(vectors, kind))


def built(kind, empty, vectors, lists, step):
    builder = IvfBuilder(empty, kind)
    for start in range(0, vectors.shape[0], step):
        builder.add(vectors[start : start + step], lists[start : start + step])
    return builder.index()


def same_answers(ours, theirs, queries, nprobe=6):
    for mine, other in zip(ours.search(queries, 10, nprobe), theirs.search(queries, 10, nprobe), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("kind", KINDS)
def test_shards_built_in_slices_are_one_index_when_merged_or_read_together(tmp_path, kind):
    vectors, queries, centroids, empty = prepared(kind)
    lists = assign_lists(vectors, centroids, IndexConfig(device="cpu"))
    whole = built(kind, empty, vectors, lists, 3000)
    shards = [built(kind, empty, vectors[a:b], lists[a:b], 333) for a, b in pairwise(CUTS)]
    files = [tmp_path / str(number) for number in range(len(shards))]
    for shard, file in zip(shards, files, strict=True):
        shard.save(file)
    read, joined = IvfIndex.load(files, kind), merged(shards)
    for index in (read, joined):
        assert (index.size, index.nlist, index.dim) == (3000, 40, 32)
        np.testing.assert_array_equal(index.list_lengths(), np.bincount(lists, minlength=40))
        np.testing.assert_array_equal(index.centroids(), centroids)
        same_answers(index, whole, queries)
    np.testing.assert_array_equal(joined.lists_of(np.arange(3000)), lists)
    joined.save(tmp_path / "joined")
    same_answers(IvfIndex.load(tmp_path / "joined", kind), whole, queries)


@pytest.mark.parametrize("kind", ["ivf_fp16", "ivf_pqfs"])
def test_shards_of_other_centroids_or_codes_do_not_merge(kind):
    vectors, _, centroids, empty = prepared(kind)
    lists = np.zeros(3000, np.int64)
    other = empty_index(IndexConfig(kind=kind), centroids[:30], vectors)
    with pytest.raises(ValueError, match="shard 1 has 30 lists"):
        merged([built(kind, empty, vectors, lists, 3000), built(kind, other, vectors, lists, 3000)])


def test_searches_of_many_threads_keep_their_own_nprobe():
    vectors, queries, centroids, empty = prepared("ivf_pqfs")
    index = built("ivf_pqfs", empty, vectors, assign_lists(vectors, centroids, IndexConfig()), 3000)
    probes = [1, 40, 3, 17] * 4
    alone = [index.search(queries, 10, nprobe)[0] for nprobe in probes]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda nprobe: index.search(queries, 10, nprobe)[0], probes))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    assert not np.array_equal(alone[0], alone[1])


def test_pqfs_scores_by_its_finer_codes_and_ranks_more_of_them_again_with_a_larger_factor():
    recalls = []
    for factor in (1, 2, 8):
        vectors, queries, centroids, empty = prepared("ivf_pqfs", refine_factor=factor)
        index = built("ivf_pqfs", empty, vectors, assign_lists(vectors, centroids, IndexConfig()), 3000)
        rows, scores = index.search(queries, 10, 40)
        recalls.append(recall_at_k(rows, exact_top_k(queries, vectors, 10)))
        np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", queries, vectors[rows]), atol=1e-3)
    assert recalls[0] < recalls[1] < recalls[2]
    assert recalls[2] > 0.98


@pytest.mark.parametrize("refine", ["fp16", "sq8"])
@pytest.mark.parametrize("norms", ["unit", "uneven"])
def test_pqfs_reaches_the_target_with_its_lists_tuned(refine, norms):
    vectors, queries = clustered(6000, 64)
    if norms == "uneven":
        scale = np.random.default_rng(1).lognormal(0, 0.5, (6000, 1))
        vectors = np.ascontiguousarray(vectors * scale, np.float32)
    config = IndexConfig(kind="ivf_pqfs", refine=refine, recall_target=0.95, device="cpu")
    index = IvfIndex.build(vectors, config, seed=1)
    nprobe, recall = choose_nprobe(index, queries, exact_top_k(queries, vectors, 10), config)
    assert recall >= 0.95
    assert nprobe < index.nlist / 2


@pytest.mark.parametrize(("items", "dim"), [(1, 8), (9, 3), (40, 2), (300, 7), (2000, 1)])
def test_pqfs_takes_few_items_and_any_number_of_columns(items, dim):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(items, dim)).astype(np.float32)
    index = IvfIndex.build(vectors, IndexConfig(kind="ivf_pqfs", refine_factor=40, device="cpu"), seed=1)
    wanted = exact_top_k(vectors[:20], vectors, 5)
    rows, scores = index.search(vectors[:20], 5, index.nlist)
    assert recall_at_k(rows, wanted) > 0.9
    assert (np.isneginf(scores) == (rows < 0)).all()


def test_pqfs_answers_queries_that_no_code_tells_apart():
    vectors, _ = clustered(500)
    vectors[:, 0] = 1.0
    index = IvfIndex.build(vectors, IndexConfig(kind="ivf_pqfs", device="cpu"), seed=1)
    queries = np.zeros((2, 32), np.float32)
    queries[1, 0] = 2.0
    rows, scores = index.search(queries, 5, index.nlist)
    assert (rows >= 0).all()
    np.testing.assert_allclose(scores, [[0.0] * 5, [2.0] * 5], atol=1e-3)


def test_vectors_are_cut_into_equal_parts():
    assert [sub_vectors(dim) for dim in (1, 2, 7, 64, 128)] == [1, 1, 7, 32, 64]


def test_a_loaded_pqfs_keeps_its_items_once(tmp_path):
    vectors, _, centroids, empty = prepared("ivf_pqfs")
    index = built("ivf_pqfs", empty, vectors, assign_lists(vectors, centroids, IndexConfig()), 3000)
    index.save(tmp_path / "index")
    loaded = IvfIndex.load(tmp_path / "index", "ivf_pqfs")
    np.testing.assert_array_equal(loaded.list_lengths(), index.list_lengths())
    with pytest.raises(AssertionError):
        loaded.save(tmp_path / "again")
