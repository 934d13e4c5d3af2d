"""Searches against a scan of everything, for any ids, exclusions, lists and k.

Vectors of small integers have exact inner products, so scores are compared exactly; of equal scores any item will do.
"""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.config import IndexConfig
from retrieval.indexes.ivf import IvfIndex
from retrieval.storage.base import VERSIONS
from retrieval.storage.local import LocalStorage
from retrieval.versions.searcher import LoadedVersion
from retrieval.versions.store import Version

DIM = 3
IDS = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3)


def vectors_of(draw, count):
    numbers = draw(st.lists(st.integers(-9, 9), min_size=count * DIM, max_size=count * DIM))
    return np.array(numbers, np.float32).reshape(count, DIM)


@st.composite
def searches(draw):
    """Item ids and vectors, queries, excluded ids of each query, k."""
    ids = draw(st.lists(IDS, min_size=1, max_size=25, unique=True))
    queries = vectors_of(draw, draw(st.integers(0, 3)))
    unwanted = st.lists(st.sampled_from(ids) | IDS, max_size=30)
    exclude = [np.array(draw(unwanted), np.int64) for _ in queries]
    return np.array(ids, np.int64), vectors_of(draw, len(ids)), queries, exclude, draw(st.integers(1, 30))


def version_of(ids, vectors, kind, nlist, nprobe):
    index = IvfIndex.build(vectors, IndexConfig(kind=kind, nlist=nlist, device="cpu"), seed=1)
    return LoadedVersion(Version("v00000001", {"nprobe": nprobe}, LocalStorage(Path(), VERSIONS)), index, ids)


def check_results(ids, scores, of_item, expected, excluded, k):
    """Ids are distinct, wanted, paired with their own scores, best first and padded to k."""
    found = np.isfinite(scores)
    assert ids.shape == scores.shape == (k,)
    assert found.tolist() == [n < expected for n in range(k)]
    assert (ids[~found] == -1).all()
    assert np.unique(ids[found]).shape[0] == expected
    assert not np.isin(ids[found], excluded).any()
    assert [of_item[item] for item in ids[found].tolist()] == scores[found].tolist()
    assert (np.diff(scores[found]) <= 0).all()


@settings(max_examples=150, deadline=None)
@given(case=searches(), kind=st.sampled_from(["ivf_flat", "ivf_fp16"]), nlist=st.integers(1, 25))
def test_a_search_of_all_lists_is_a_scan_of_everything(case, kind, nlist):
    item_ids, vectors, queries, exclude, k = case
    ids, scores = version_of(item_ids, vectors, kind, nlist, nlist).search(queries, k, exclude)
    for q, excluded in enumerate(exclude):
        of_item = dict(zip(item_ids.tolist(), (vectors @ queries[q]).tolist(), strict=True))
        best = sorted((s for i, s in of_item.items() if i not in excluded.tolist()), reverse=True)[:k]
        check_results(ids[q], scores[q], of_item, len(best), excluded, k)
        assert scores[q, : len(best)].tolist() == best


@settings(max_examples=150, deadline=None)
@given(case=searches(), nlist=st.integers(1, 25), nprobe=st.integers(1, 3))
def test_a_search_of_few_lists_still_fills_k_with_what_is_left(case, nlist, nprobe):
    item_ids, vectors, queries, exclude, k = case
    ids, scores = version_of(item_ids, vectors, "ivf_flat", nlist, nprobe).search(queries, k, exclude)
    for q, excluded in enumerate(exclude):
        of_item = dict(zip(item_ids.tolist(), (vectors @ queries[q]).tolist(), strict=True))
        left = int((~np.isin(item_ids, excluded)).sum())
        check_results(ids[q], scores[q], of_item, min(k, left), excluded, k)
