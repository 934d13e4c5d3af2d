"""The live version as the ranks that make its deltas see it: its towers, and the rows that a server has by now.

Shape letters: N items, K categories of an item, D columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from cluster.checkpoints.part import Saved
from cluster.checkpoints.parts.rows import frozen_rows
from cluster.config import FreshetConfig
from cluster.publishing.item_encoding import SLICE_ITEMS, encode_items
from cluster.queries.query_side import SavedTowers
from cluster.tables.buckets import bucket_range
from cluster.tables.frozen_rows import of_buckets
from cluster.tables.overlaid_rows import OverlaidRows, RowChanges
from model.features import ITEM
from model.precision import use_precision
from model.two_tower import TwoTower
from retrieval.versions.store import Version
from streaming.arrays import Float32Array, Float64Array, Int64Array


@dataclass(frozen=True)
class LiveView:
    """One rank's part of a version at some delta; immutable.

    Attributes:
        version: the version.
        model: its towers, on the device that encodes.
        rows: the users, items, and sources of this rank's buckets, and all rows of the other tables.
    """

    version: Version
    model: TwoTower
    rows: OverlaidRows

    @staticmethod
    def open(
        version: Version, config: FreshetConfig, device: torch.device, rank: int, world: int
    ) -> LiveView:
        """Read a verified version without deltas; draws no random numbers.

        Raises:
            CheckpointError, VersionError: a file is missing or damaged.
        """
        towers = SavedTowers.load(version)
        rows = frozen_rows(Saved(version), towers.rows, wanted=of_buckets(bucket_range(rank, world)))
        model = towers.model.to(device)
        use_precision(model, config.precision)
        return LiveView(version, model, OverlaidRows(rows))

    @property
    def base_items(self) -> int:
        """Items of the version."""
        return int(self.version.manifest["items"])

    def advance(self, changes: RowChanges) -> LiveView:
        """The same after some changes of rows, which shares everything else."""
        return replace(self, rows=self.rows.with_changes(changes))

    def moved(self, later: LiveView, item_ids: Int64Array) -> Float64Array:
        """The norm of the difference of each item's row from that in a later view, float64 (N,); inf if not finite."""
        tables = np.full(item_ids.shape[0], ITEM, np.int16)
        difference = later.rows.rows_of(tables, item_ids) - self.rows.rows_of(tables, item_ids)
        norms: Float64Array = torch.linalg.vector_norm(difference[1:], dim=1).double().numpy()
        return np.nan_to_num(norms, nan=np.inf)

    def encode(self, ids: Int64Array, category_NK: Int64Array) -> Float32Array:
        """The vectors of items of this rank, float32 (N, D)."""
        slices: Iterator[tuple[Int64Array, Int64Array]] = (
            (ids[start : start + SLICE_ITEMS], category_NK[start : start + SLICE_ITEMS])
            for start in range(0, ids.shape[0], SLICE_ITEMS)
        )
        vectors = [vector for _, vector in encode_items(self.model, self.rows, slices)]
        return np.concatenate([np.zeros((0, self.model.config.dim), np.float32), *vectors])
