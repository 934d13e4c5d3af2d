import numpy as np
import pytest

from retrieval.config import IndexConfig
from retrieval.indexes.exact import exact_top_k, recall_at_k
from retrieval.indexes.ivf import IndexInputError, IvfIndex, lists_for
from retrieval.versions.tuning import choose_nprobe
from tests.unit.retrieval.conftest import clustered


def tuned(vectors, queries, config):
    index = IvfIndex.build(vectors, config, seed=1)
    return index, *choose_nprobe(index, queries, exact_top_k(queries, vectors, 10), config)


def numpy_top_k(queries, vectors, k):
    return np.argsort(-(queries.astype(np.float64) @ vectors.T.astype(np.float64)), axis=1, kind="stable")[
        :, :k
    ]


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_fp16", "ivf_sq8"])
def test_clustered_unit_vectors_reach_the_target_with_at_most_half_of_the_lists(kind):
    vectors, queries = clustered(3000)
    index, nprobe, recall = tuned(vectors, queries, IndexConfig(kind=kind))
    found, _ = index.search(queries, 10, nprobe)
    assert recall >= 0.97
    assert recall == pytest.approx(recall_at_k(found, numpy_top_k(queries, vectors, 10)), abs=0.002)
    assert 1 <= nprobe <= index.nlist / 2


def test_skewed_norms_reach_the_target_while_few_items_are_scanned():
    vectors, queries = clustered(6000)
    norms = np.random.default_rng(1).lognormal(0, 0.7, size=(6000, 1))
    vectors = np.ascontiguousarray(vectors * norms + 0.06, np.float32)
    index, nprobe, recall = tuned(vectors, queries, IndexConfig())
    assert recall >= 0.97
    # k-means by inner product needs more than half of the items here, spherical k-means a tenth.
    assert index.scanned(queries, nprobe) < 0.06 * 6000


def test_nprobe_is_the_smallest_that_reaches_the_target():
    vectors, queries = clustered(3000)
    config = IndexConfig(recall_target=0.995)
    index, nprobe, recall = tuned(vectors, queries, config)
    wanted = exact_top_k(queries, vectors, 10)
    assert recall >= 0.995
    assert nprobe > 1
    assert recall_at_k(index.search(queries, 10, nprobe - 1)[0], wanted) < 0.995


def test_a_fixed_nprobe_is_kept_but_never_beyond_the_lists():
    vectors, queries = clustered(2000)
    index, nprobe, recall = tuned(vectors, queries, IndexConfig(nlist=8, nprobe=50))
    assert (index.nlist, nprobe) == (8, 8)
    assert recall > 0.99


def test_out_of_reach_the_tuner_stops_at_the_largest_allowed_share_of_lists():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2000, 64)).astype(np.float32)
    index, nprobe, recall = tuned(
        vectors, vectors[:200], IndexConfig(recall_target=1.0, max_probe_fraction=0.1)
    )
    assert nprobe == int(index.nlist * 0.1)
    assert recall < 1.0


@pytest.mark.parametrize(
    ("items", "lists"), [(1, 1), (999, 1), (1682, 56), (250_000, 2000), (4_000_000, 8000)]
)
def test_lists_grow_with_the_root_of_the_catalogue(items, lists):
    assert lists_for(items, IndexConfig()) == lists


def test_more_lists_than_items_become_as_many_as_items():
    vectors, queries = clustered(20)
    index = IvfIndex.build(vectors, IndexConfig(nlist=500), seed=1)
    rows, _ = index.search(queries, 5, index.nlist)
    assert index.nlist == 20
    assert recall_at_k(rows, numpy_top_k(queries, vectors, 5)) > 0.995


def test_fewer_items_than_k_are_padded():
    vectors, queries = clustered(3)
    rows, _ = IvfIndex.build(vectors, IndexConfig(), seed=1).search(queries, 5, 1)
    assert (np.sort(rows[:, :3], axis=1) == [0, 1, 2]).all()
    assert (rows[:, 3:] == -1).all()


def test_scanned_counts_the_items_of_the_probed_lists():
    vectors, queries = clustered(2000)
    index = IvfIndex.build(vectors, IndexConfig(), seed=1)
    rows, _ = index.search(queries, 2000, 3)
    assert index.scanned(queries, 3) == pytest.approx((rows >= 0).sum(axis=1).mean())
    assert index.scanned(queries, index.nlist) == 2000


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_fp16", "ivf_sq8"])
def test_a_saved_index_answers_as_before(tmp_path, kind):
    vectors, queries = clustered(2000)
    index = IvfIndex.build(vectors, IndexConfig(kind=kind), seed=1)
    index.save(tmp_path / "index.faiss")
    loaded = IvfIndex.load(tmp_path / "index.faiss", index.kind)
    for mine, theirs in zip(index.search(queries, 10, 4), loaded.search(queries, 10, 4), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_each_kind_stores_a_number_in_its_own_width(tmp_path):
    vectors, queries = clustered(3000, 64)
    sizes, errors = [], []
    for kind in ("ivf_flat", "ivf_fp16", "ivf_sq8"):
        index = IvfIndex.build(vectors, IndexConfig(kind=kind), seed=1)
        index.save(tmp_path / kind)
        sizes.append((tmp_path / kind).stat().st_size)
        rows, scores = index.search(queries, 10, index.nlist)
        errors.append(float(np.abs(scores - np.einsum("qd,qkd->qk", queries, vectors[rows])).max()))
    numbers = vectors.size
    assert sizes[0] - sizes[1] == pytest.approx(2 * numbers, rel=0.01)
    assert sizes[1] - sizes[2] == pytest.approx(numbers, rel=0.01)
    assert errors[0] < 1e-6 < errors[1] < errors[2] < 0.02


def test_the_same_seed_builds_the_same_index():
    vectors, queries = clustered(2000)
    first, second = (IvfIndex.build(vectors, IndexConfig(), seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.centroids(), second.centroids())
    np.testing.assert_array_equal(first.search(queries, 10, 2)[0], second.search(queries, 10, 2)[0])


def test_a_warm_start_goes_on_from_the_centroids_it_is_given():
    vectors, _ = clustered(2000)
    trained = IvfIndex.build(vectors, IndexConfig(build_iterations=20), seed=1).centroids()
    config = IndexConfig(warm_start_iterations=1)
    warm = IvfIndex.build(vectors, config, seed=2, warm_start_LD=trained).centroids()
    cold = IvfIndex.build(vectors, config, seed=2).centroids()
    assert np.abs(warm - trained).max() < 0.2
    assert np.abs(cold - trained).max() > 0.5


def test_centroids_of_another_shape_are_not_started_from():
    vectors, _ = clustered(2000)
    config = IndexConfig(warm_start_iterations=1)
    cold = IvfIndex.build(vectors, config, seed=2).centroids()
    other = IvfIndex.build(vectors, config, seed=2, warm_start_LD=cold[:5]).centroids()
    np.testing.assert_array_equal(cold, other)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((0, 4), np.float32), "no items"),
        (np.array([[1, 2], [np.nan, 1], [np.inf, 0]], np.float32), "2 of 3 item vectors are not finite"),
    ],
)
def test_what_cannot_be_indexed_is_refused(vectors, message):
    with pytest.raises(IndexInputError, match=message):
        IvfIndex.build(vectors, IndexConfig(), seed=1)


@pytest.mark.parametrize(
    ("shape", "k", "message"), [((2, 7), 3, r"\(2, 7\)"), ((2, 32), 0, "k must be at least 1")]
)
def test_a_search_that_makes_no_sense_is_refused(shape, k, message):
    index = IvfIndex.build(clustered(10)[0], IndexConfig(), seed=1)
    with pytest.raises(IndexInputError, match=message):
        index.search(np.zeros(shape, np.float32), k, 1)


def test_exact_search_agrees_with_sorting_all_products():
    # Small integers: products are exact in float32, and no two of one query are equal.
    vectors = np.array([[1, 0], [0, 3], [2, 2], [-5, 1]], np.float32)
    queries = np.array([[4, 1], [-3, 1]], np.float32)
    np.testing.assert_array_equal(exact_top_k(queries, vectors, 5), [[2, 0, 1, 3, -1], [3, 1, 0, 2, -1]])


def test_recall_counts_wanted_results_and_ignores_padding():
    wanted = np.array([[1, 2, 3], [4, -1, -1]])
    found = np.array([[3, 9, 1], [-1, -1, -1]])
    assert recall_at_k(found, wanted) == 2 / 4
    assert recall_at_k(found[:, :0], wanted) == 0.0
    assert recall_at_k(found, np.full((2, 3), -1)) == 1.0
