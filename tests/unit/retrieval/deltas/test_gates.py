from functools import partial

import numpy as np
import pytest

from retrieval.config import IndexConfig
from retrieval.deltas.gates import Norms, check_delta, searches_find
from retrieval.ranks import OneRank
from retrieval.versions.searcher import Searcher
from tests.support.thread_ranks import on_threads
from tests.unit.retrieval.conftest import clustered, unit

NORMS = Norms(0.9, 1.1)
CONFIG = IndexConfig()


def checked(vectors, view=None, norms=NORMS, ids=None):
    ids = np.arange(vectors.shape[0]) if ids is None else ids
    finds = None if view is None else partial(searches_find, view)
    report = check_delta(OneRank(), ids, np.asarray(vectors, np.float32), norms, finds, CONFIG)
    return report, {check.name: check.value for check in report.checks}


@pytest.fixture
def loaded(store, put):
    vectors, queries = clustered(2000)
    put(vectors, queries)
    return Searcher(store.root).loaded


def test_norms_of_a_version_are_those_of_its_items(store, put, loaded):
    norms = Norms.of([loaded.version.file(name) for name in loaded.version.files("items-")])
    assert (norms.least, norms.most) == pytest.approx((1, 1), abs=1e-5)


def test_vectors_like_those_of_the_version_pass(loaded):
    new, _ = clustered(300, seed=5)
    ids = np.arange(300) * 10
    report, values = checked(new, loaded.with_items(ids, new, np.array([], np.int64)), ids=ids)
    assert report.passed
    assert values == {"finite": 1, "nonzero": 1, "norms": 1, "found": 1}


@pytest.mark.parametrize(
    ("bad", "gate"),
    [
        (np.nan, "finite"),
        (np.inf, "finite"),
        (0.0, "nonzero"),
        (30.0, "norms"),
        (1e-3, "norms"),
        (1e38, "norms"),
    ],
)
def test_one_bad_vector_fails_its_gate_and_is_explained(bad, gate):
    vectors = unit(np.ones((4, 8)))
    vectors[2] = bad if bad in (0.0, 30.0, 1e-3) else vectors[2]
    vectors[2, 3] = bad
    report, values = checked(vectors)
    assert not report.passed
    assert values[gate] == 0.75
    assert gate in report.why_not()


def test_a_delta_that_searches_do_not_find_fails(loaded):
    new, _ = clustered(40, seed=5)
    report, values = checked(new, loaded, ids=np.arange(40) + 10**6)
    assert values["found"] < 0.95
    assert "searches for an item's own vector miss it" in report.why_not()


def test_a_delta_without_items_passes():
    report, values = checked(np.empty((0, 8)))
    assert report.passed
    assert values == {"finite": 1, "nonzero": 1, "norms": 1}


def test_ranks_are_checked_together_and_get_the_same_report():
    def check(ranks):
        vectors = unit(np.ones((3, 8))) * (0 if ranks.rank == 1 else 1)
        return check_delta(ranks, np.arange(3), vectors.astype(np.float32), NORMS, None, CONFIG)

    first, second = on_threads(2, check)
    assert first == second
    assert {check.name: check.value for check in first.checks}["nonzero"] == 0.5
