"""A live version without an index, and its chain."""

from pathlib import Path

import numpy as np
import pytest

from retrieval.deltas.chain import DeltaChain
from retrieval.deltas.delta import write_items
from retrieval.versions.store import Version, VersionStore

NO_IDS = np.empty(0, np.int64)


def live_version(store: VersionStore) -> Version:
    building = store.begin()
    (building.path / "a").write_bytes(b"a")
    return store.promote(store.commit(building, {}).name)


def append(chain: DeltaChain, ids=(), vectors=None, deleted=(), **described):
    """Commit a delta with these items; vectors of two columns by default."""
    ids = np.asarray(ids, np.int64)
    vectors = np.full((ids.shape[0], 2), 0.5, np.float32) if vectors is None else vectors
    folder = chain.begin()
    write_items(folder.path, 0, ids, vectors, np.asarray(deleted, np.int64))
    return chain.commit(folder, described)


@pytest.fixture
def version(store) -> Version:
    return live_version(store)


@pytest.fixture
def chain(store, version) -> DeltaChain:
    return DeltaChain(store, version)


@pytest.fixture
def deltas(store, version) -> Path:
    """The folder of the chain."""
    return store.root / "deltas" / version.name
