"""The parts of the live version that a new one uses: centroids to start from, and results to compare with.

A damaged live version must not block its successor; it is logged and not used.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from retrieval.arrays import Float32Array, Int64Array
from retrieval.indexes.ivf import IvfIndex
from retrieval.indexes.parts import read_ids
from retrieval.indexes.sharded_index import ShardedSearch
from retrieval.ranks import Ranks, gather_results, on_first_rank
from retrieval.versions.shards import shards_of
from retrieval.versions.store import VersionError, VersionStore

_log = logging.getLogger(__name__)


def live_centroids(store: VersionStore) -> Float32Array | None:
    """The centroids float32 (L, D) of the live version; its lists are not read into memory."""
    try:
        live = store.current()
        if live is None:
            return None
        first = shards_of(live)[0].index
        version = store.verify(live.name, [first])
        index = IvfIndex.load(version.file(first), str(version.manifest["kind"]), mapped=True)
    except VersionError as error:
        _log.warning("the centroids of the live index version are not used: %s", error)
        return None
    return index.centroids()


class LiveSearch(ShardedSearch):
    """The live version, its shards spread over the ranks that build its successor, searched from the disk.

    Args:
        ranks: that build.
        shards: of this rank.
        manifest: of the version.
    """

    def __init__(
        self, ranks: Ranks, shards: Sequence[tuple[IvfIndex, Int64Array]], manifest: Mapping[str, Any]
    ) -> None:
        super().__init__(ranks, shards)
        self.nprobe, self.dim = int(manifest["nprobe"]), int(manifest["dim"])


def open_live(store: VersionStore, ranks: Ranks) -> LiveSearch | None:
    """Collective. The live version to search; None if there is none, or if a rank finds its shards damaged."""

    def live_version() -> tuple[str | None, str]:
        try:
            live = store.current()
        except VersionError as error:
            return None, str(error)
        return (live.name if live is not None else None), ""

    name, problem = on_first_rank(ranks, live_version)
    shards: list[tuple[IvfIndex, Int64Array]] = []

    def load() -> tuple[Mapping[str, Any], str]:
        try:
            manifest, loaded = _own_shards(store, str(name), ranks)
        except VersionError as error:
            return {}, str(error)
        shards.extend(loaded)
        return manifest, ""

    told = gather_results(ranks, load) if name is not None else []
    problems = [problem, *(why for _, why in told)]
    if any(problems):
        _log.warning("the live index version is not compared with: %s", next(filter(None, problems)))
    if name is None or any(problems):
        return None
    return LiveSearch(ranks, shards, told[0][0])


def _own_shards(
    store: VersionStore, name: str, ranks: Ranks
) -> tuple[Mapping[str, Any], list[tuple[IvfIndex, Int64Array]]]:
    own = shards_of(store.open(name))[ranks.rank :: ranks.world]
    version = store.verify(name, [file for shard in own for file in (shard.index, shard.items)])
    kind = str(version.manifest["kind"])
    return version.manifest, [
        (IvfIndex.load(version.file(shard.index), kind, mapped=True), read_ids(version.file(shard.items)))
        for shard in own
    ]
