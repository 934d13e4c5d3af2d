"""Versions in the layout of format 2, as they were written before versions and checkpoints shared one store."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from retrieval.versions.searcher import Searcher
from retrieval.versions.store import VersionStore

FORMAT_2 = Path(__file__).parents[3] / "data" / "index-format-2"


@pytest.fixture
def root(tmp_path):
    return Path(shutil.copytree(FORMAT_2, tmp_path / "index"))


def test_they_are_listed_verified_searched_and_rolled_back(root):
    store, searcher = VersionStore(root), Searcher(root)
    assert store.names() == ["v00000001", "v00000002"]
    assert searcher.version.name == "v00000001"
    assert searcher.version.file("tower.bin").read_bytes() == b"tower 0"
    store.rollback("v00000002")
    assert searcher.refresh()
    ids, scores = searcher.search(np.eye(4, dtype=np.float32), 3)
    assert ids.shape == (4, 3)
    assert np.isfinite(scores).all()


def test_the_next_version_stands_beside_them_and_they_are_pruned(root):
    store = VersionStore(root)
    building = store.begin()
    (building.path / "file").write_bytes(b"data")
    assert store.promote(store.commit(building, {}).name).name == "v00000003"
    store.prune(1)
    assert sorted(path.name for path in root.iterdir()) == [".lock", "CURRENT", "v00000003"]
