"""A live version of given vectors, for benchmarks of searches."""

from pathlib import Path

import numpy as np

from retrieval.arrays import Float32Array, Int64Array
from retrieval.config import IndexConfig
from retrieval.indexes.coarse import assign_lists, train_centroids
from retrieval.indexes.ivf import IvfBuilder, IvfIndex, empty_index, lists_for
from retrieval.indexes.kinds import codec_sample
from retrieval.indexes.parts import write_part
from retrieval.versions.shards import WHOLE_INDEX, WHOLE_ITEMS
from retrieval.versions.store import VersionStore

_POINTS_PER_LIST = 64


def centroids_of(vectors: Float32Array, config: IndexConfig) -> Float32Array:
    """Centroids, learned from a sample."""
    items = vectors.shape[0]
    lists = lists_for(items, config)
    sample = np.random.default_rng(0).permutation(items)[: _POINTS_PER_LIST * lists]
    return train_centroids(np.ascontiguousarray(vectors[np.sort(sample)]), lists, config, seed=1)


def index_of(
    vectors: Float32Array,
    centroids: Float32Array,
    config: IndexConfig,
    assigned: Int64Array | None = None,
) -> IvfIndex:
    """All items in the lists of these centroids."""
    builder = IvfBuilder(empty_index(config, centroids, codec_sample(vectors, config.kind)), config.kind)
    lists = assign_lists(vectors, centroids, config) if assigned is None else assigned
    builder.add(vectors, lists)
    return builder.index()


def publish_index(
    folder: Path, index: IvfIndex, ids: Int64Array, vectors: Float32Array, nprobe: int
) -> VersionStore:
    """A store in which this index is live."""
    store = VersionStore(folder / "index")
    building = store.begin()
    index.save(building.path / WHOLE_INDEX)
    write_part(building.path / WHOLE_ITEMS, ids, vectors)
    described = {"kind": index.kind, "nprobe": nprobe, "dim": vectors.shape[1]}
    store.promote(store.commit(building, described).name)
    return store
