"""The files of a version's shards, one pair per rank that built it, and how they become one index.

All shards of a version have the same centroids, so their inverted lists are merged; row numbers continue from shard to
shard. A version with one file of each kind, as written by earlier code, has one shard.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrieval.arrays import Int64Array
from retrieval.indexes.ivf import IvfIndex
from retrieval.indexes.parts import read_ids
from retrieval.versions.store import Version, VersionCorrupt

WHOLE_INDEX, WHOLE_ITEMS = "index.faiss", "items.arrow"
"""The files of a version written by earlier code."""


@dataclass(frozen=True)
class ShardFiles:
    """Names of the two files of a shard."""

    index: str
    items: str

    @staticmethod
    def of_rank(rank: int) -> ShardFiles:
        """What a rank adds to a version."""
        return ShardFiles(f"index-{rank:04d}.faiss", f"items-{rank:04d}.arrow")


def shards_of(version: Version) -> list[ShardFiles]:
    """The shards of a version, at least one, in the order of their row numbers.

    If only one file of a shard is listed, opening the other one fails.
    """
    if WHOLE_INDEX in version.files() or WHOLE_ITEMS in version.files():
        return [ShardFiles(WHOLE_INDEX, WHOLE_ITEMS)]
    shards = max(len(version.files("index-")), len(version.files("items-")), 1)
    return [ShardFiles.of_rank(rank) for rank in range(shards)]


def load_shards(version: Version) -> tuple[IvfIndex, Int64Array]:
    """One index of all shards, and the item id int64 (N,) of each of its rows.

    Raises:
        VersionCorrupt: the manifest does not list a file of a shard, or the shards do not make one index.
    """
    shards = shards_of(version)
    files = [version.file(shard.index) for shard in shards]
    ids = np.concatenate([read_ids(version.file(shard.items)) for shard in shards])
    try:
        index = IvfIndex.load(files, str(version.manifest["kind"]))
    except ValueError as error:
        raise VersionCorrupt(f"index version {version.name} is damaged: {error}") from error
    if index.size != ids.shape[0]:
        raise VersionCorrupt(
            f"index version {version.name} is damaged: its index has {index.size} items, there are {ids.shape[0]} ids"
        )
    return index, ids
