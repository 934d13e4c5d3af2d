"""Whether searches will find what a delta brings, asked without loading the version and of the loaded one."""

import numpy as np
import pytest

from retrieval.config import IndexConfig
from retrieval.deltas.gates import searches_find
from retrieval.versions.probe import DeltaProbe
from retrieval.versions.searcher import LoadedVersion
from tests.unit.retrieval.conftest import clustered

NONE = np.empty(0, np.int64)
IDS = np.arange(40) + 10**6


@pytest.fixture
def version_of(store, put):
    def make(kind):
        vectors, queries = clustered(2000)
        put(vectors, queries, config=IndexConfig(kind=kind, device="cpu", min_recall=0.5, recall_target=0.9))
        return store.current()

    return make


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_fp16", "ivf_sq8", "ivf_pqfs"])
def test_what_it_says_is_what_a_search_of_the_version_with_the_delta_finds(version_of, kind):
    version = version_of(kind)
    new, _ = clustered(40, seed=5)
    found = DeltaProbe(version).finds(IDS, new)
    np.testing.assert_array_equal(
        found, searches_find(LoadedVersion.load(version).with_items(IDS, new, NONE), IDS, new)
    )
    assert found.mean() > 0.95


def test_a_version_with_fine_codes_is_not_loaded(version_of, monkeypatch):
    probe = DeltaProbe(version_of("ivf_fp16"))
    monkeypatch.setattr(LoadedVersion, "load", None)
    assert probe.finds(IDS, clustered(40, seed=5)[0]).all()


def test_items_whose_codes_are_lost_are_not_found(version_of):
    new, _ = clustered(40, seed=5)
    new[:10] *= 1e6  # beyond float16
    found = DeltaProbe(version_of("ivf_fp16")).finds(IDS, new)
    assert not found[:10].any()
    assert found[10:].all()


def test_lists_and_their_lengths_are_those_of_the_index(version_of):
    version = version_of("ivf_fp16")
    probe, index = DeltaProbe(version), LoadedVersion.load(version).index
    np.testing.assert_array_equal(probe.list_lengths, index.list_lengths())
    new, _ = clustered(40, seed=5)
    np.testing.assert_array_equal(probe.lists_of(new), index.assigned(new))
