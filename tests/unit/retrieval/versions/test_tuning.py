"""nprobe: the fewest lists that reach the target, found with hardly a search."""

import numpy as np
import pytest

from retrieval.config import IndexConfig
from retrieval.indexes.exact import exact_top_k, recall_at_k
from retrieval.indexes.ivf import IvfIndex
from retrieval.versions.tuning import choose_nprobe
from tests.unit.retrieval.conftest import unit

TARGETS = (0.5, 0.8, 0.97, 0.999)


def _built(kind, norms, seed=0):
    """3,000 vectors without clusters, which need many lists, and 200 queries."""
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(3000, 24)))
    if norms == "uneven":
        vectors *= rng.lognormal(0, 0.5, (3000, 1)).astype(np.float32)
    queries = unit(rng.normal(size=(200, 24)))
    config = IndexConfig(kind=kind, nlist=60, max_probe_fraction=1.0)
    return IvfIndex.build(vectors, config, seed=1), queries, exact_top_k(queries, vectors, 10)


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_fp16", "ivf_sq8", "ivf_pqfs"])
@pytest.mark.parametrize("norms", ["unit", "uneven"])
def test_no_smaller_nprobe_reaches_the_target(kind, norms):
    index, queries, wanted = _built(kind, norms)
    recall = [recall_at_k(index.search(queries, 10, n)[0], wanted) for n in range(1, index.nlist + 1)]
    for target in TARGETS:
        config = IndexConfig(kind=kind, recall_target=target, min_recall=target, max_probe_fraction=1.0)
        chosen, reached = choose_nprobe(index, queries, wanted, config)
        assert chosen == next((n for n, found in enumerate(recall, 1) if found >= target), index.nlist)
        assert reached == recall[chosen - 1]


def test_a_target_out_of_reach_gives_the_most_lists_that_are_allowed():
    index, queries, wanted = _built("ivf_fp16", "unit")
    config = IndexConfig(max_probe_fraction=0.2, recall_target=1.0, min_recall=1.0)
    chosen, reached = choose_nprobe(index, queries, wanted, config)
    assert chosen == 12
    assert reached == recall_at_k(index.search(queries, 10, 12)[0], wanted) < 1.0


def test_lists_that_round_vectors_take_a_few_searches_more(monkeypatch):
    index, queries, wanted = _built("ivf_flat", "unit")
    searches = []
    search = index.search

    def rounded(query_QD, k, nprobe):
        """As if quantised: every fifth query loses its best result."""
        searches.append(nprobe)
        rows, scores = search(query_QD, k, nprobe)
        rows[::5, 0] = -1
        return rows, scores

    monkeypatch.setattr(index, "search", rounded)
    for target in TARGETS[:3]:
        searches.clear()
        config = IndexConfig(recall_target=target, min_recall=target, max_probe_fraction=1.0)
        chosen, reached = choose_nprobe(index, queries, wanted, config)
        assert reached >= target
        assert len(searches) <= 6
        fewer = recall_at_k(rounded(queries, 10, chosen - 1)[0], wanted)
        assert fewer < target
