"""One version as one object: the query side that encodes users, and the index that is searched.

Shape letters: E events (queries), Q queries, K results, D columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from cluster.config import FreshetConfig
from cluster.queries.query_side import QuerySide
from cluster.queries.version_store import version_store
from retrieval.versions.follower import VersionFollower
from retrieval.versions.searcher import LoadedVersion
from retrieval.versions.store import Version
from streaming.arrays import Float32Array, Int64Array
from streaming.catalogue.overlaid import ReadCatalogue
from streaming.config import StreamConfig


@dataclass(frozen=True)
class ServedModel:
    """Towers, rows, catalogue and index of one version; immutable, so any number of threads can use it.

    Attributes:
        queries: towers, rows and catalogue.
        items: the index and the items' ids.
    """

    queries: QuerySide
    items: LoadedVersion

    @staticmethod
    def load(
        version: Version, stream: StreamConfig, gpu: int | Sequence[int] | None = None
    ) -> Iterator[ServedModel]:
        """Read a verified version; with a `gpu`, then yields the same version with its index there."""
        queries = QuerySide.load(version, stream)
        for items in LoadedVersion.load_on(version, gpu):
            yield ServedModel(queries, items)

    @property
    def version(self) -> Version:
        """The version that all of it came from."""
        return self.items.version

    @property
    def catalogue(self) -> ReadCatalogue:
        """The version's titles, categories and attributes."""
        return self.queries.catalogue

    def encode(self, batch: pa.RecordBatch) -> Float32Array:
        """The query vector of each event, float32 (E, D); see `QuerySide.encode`."""
        return self.queries.encode(batch)

    def search(
        self, query_QD: Float32Array, k: int, exclude: Sequence[Int64Array] | None = None
    ) -> tuple[Int64Array, Float32Array]:
        """Item ids int64 (Q, K) and scores float32 (Q, K) for vectors from `encode`; see `Searcher.search`."""
        return self.items.search(query_QD, k, exclude)


def follow_models(config: FreshetConfig) -> VersionFollower[ServedModel]:
    """Follows the live version of a run; nothing is loaded before the first `refresh`."""
    gpu = config.index.cards() if config.index.device == "cuda" else None
    return VersionFollower(version_store(config), partial(ServedModel.load, stream=config.stream, gpu=gpu))
