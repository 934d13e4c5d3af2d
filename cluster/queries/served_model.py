"""One version, after some of its deltas, as one object: the query side that encodes users, and the index.

Shape letters: E events (queries), Q queries, K results, D columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from cluster.config import FreshetConfig
from cluster.queries.changes import read_changes
from cluster.queries.query_side import QuerySide
from cluster.queries.version_store import version_store
from retrieval.deltas.delta import Delta
from retrieval.versions.follower import VersionFollower
from retrieval.versions.searcher import LoadedVersion
from retrieval.versions.store import Version
from streaming.arrays import Float32Array, Int64Array
from streaming.catalogue.overlaid import ReadCatalogue
from streaming.config import StreamConfig


@dataclass(frozen=True)
class ServedModel:
    """Towers, rows, catalogue and index at one (version, delta); immutable, so any number of threads can use it.

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

    def advance(self, delta: Delta) -> ServedModel:
        """The model after one more delta, which must be verified; shares everything that did not change with this one.

        Raises:
            DeltaError: the delta's changes cannot be read, or are of another model.
        """
        try:
            changes = read_changes(delta)
            queries = self.queries if changes is None else self.queries.advance(changes)
        except (pa.ArrowException, ValueError, KeyError) as error:
            raise delta.damaged(f"its changed rows and records: {error}") from error
        return ServedModel(queries, self.items.advance(delta))

    @property
    def version(self) -> Version:
        """The full version that all of it came from."""
        return self.items.version

    @property
    def delta(self) -> int:
        """Number of the last delta that is in it; 0 before the first."""
        return self.items.delta_number

    @property
    def steps(self) -> int:
        """Number of steps that it was trained on, as far as the manifests of its version and last delta have it."""
        newest = self.items.delta or self.items.version
        return int(newest.manifest.get("step") or self.version.manifest.get("step") or 0)

    @property
    def catalogue(self) -> ReadCatalogue:
        """Titles, categories and attributes."""
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
    """Follows the live version of a run and its deltas; nothing is loaded before the first `refresh`."""
    gpu = config.index.cards() if config.index.device == "cuda" else None
    load = partial(ServedModel.load, stream=config.stream, gpu=gpu)
    return VersionFollower(version_store(config), load, ServedModel.advance)
