"""Vectors like those of trained towers, and a store that publishes them."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval.config import IndexConfig
from retrieval.versions.publish import PublishReport, publish
from retrieval.versions.store import VersionStore


def unit(vectors):
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def clustered(items: int, dim: int = 32, seed: int = 0):
    """Unit item vectors around items / 60 centres, and 300 unit queries near items."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(3, items // 60), dim))
    vectors = unit(centres[rng.integers(0, centres.shape[0], items)] + 0.6 * rng.normal(size=(items, dim)))
    queries = unit(vectors[rng.integers(0, items, 300)] + 0.1 * rng.normal(size=(300, dim)))
    return vectors, queries


@pytest.fixture
def store(tmp_path) -> VersionStore:
    return VersionStore(tmp_path / "index")


@pytest.fixture
def put(store, tmp_path) -> Callable[..., PublishReport]:
    """Publish vectors into `store`, ids 0, 10, 20, … by default."""

    def put(
        vectors, queries=None, config=None, ids=None, extra_files=None, quality=None, **metadata: Any
    ) -> PublishReport:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        for name, content in (extra_files or {}).items():
            (folder / name).write_bytes(content)
        return publish(
            store,
            folder,
            iter([(np.arange(vectors.shape[0]) * 10 if ids is None else ids, vectors)]),
            vectors[:0] if queries is None else queries,
            config or IndexConfig(),
            metadata=metadata,
            seed=1,
            quality=lambda: quality,
        )

    return put
