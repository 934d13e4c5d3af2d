"""The live version as the ranks that make its deltas see it: its towers, and the rows as the run has changed them.

Shape letters: N items, K categories of an item, D columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from cluster.checkpoints.part import Saved
from cluster.checkpoints.parts.rows import frozen_rows
from cluster.config import FreshetConfig
from cluster.deltas.latest_rows import LatestRows
from cluster.publishing.item_encoding import SLICE_ITEMS, encode_items
from cluster.queries.query_side import SavedTowers
from cluster.tables.buckets import are_endless, bucket_range, in_range
from cluster.tables.frozen_rows import Wanted
from cluster.tables.overlaid_rows import RowChanges
from model.features import ITEM
from model.precision import use_precision
from model.two_tower import TwoTower
from retrieval.versions.store import Version
from streaming.arrays import BoolArray, Float32Array, Float64Array, Int16Array, Int64Array


@dataclass(frozen=True)
class LiveView:
    """One rank's part of a version after the last snapshot; for the thread that makes deltas.

    Attributes:
        version: the version.
        model: its towers, on the device that encodes.
        rows: the items of this rank's buckets, and all rows of the tables that are the same for many items.
    """

    version: Version
    model: TwoTower
    rows: LatestRows

    @staticmethod
    def open(
        version: Version, config: FreshetConfig, device: torch.device, rank: int, world: int
    ) -> LiveView:
        """Read a verified version without deltas; draws no random numbers.

        Raises:
            CheckpointError, VersionError: a file is missing or damaged.
        """
        towers = SavedTowers.load(version)
        rows = frozen_rows(Saved(version), towers.rows, wanted=_items_of(bucket_range(rank, world)))
        model = towers.model.to(device)
        use_precision(model, config.precision)
        return LiveView(version, model, LatestRows(rows))

    @property
    def base_items(self) -> int:
        """Items of the version."""
        return int(self.version.manifest["items"])

    def change(self, changes: RowChanges, item_ids: Int64Array) -> Float64Array:
        """Apply changes of rows. Returns how far they moved each item's row, float64 (N,), the norm; inf if not finite.

        Args:
            changes: since the last call.
            item_ids: int64 (N,), distinct, of this rank.
        """
        tables = np.full(item_ids.shape[0], ITEM, np.int16)
        before = self.rows.rows_of(tables, item_ids)
        self.rows.change(changes)
        difference = before.sub_(self.rows.rows_of(tables, item_ids))
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


def _items_of(buckets: tuple[int, int]) -> Wanted:
    """Selects items of a half-open range of buckets, rows that items share there, and keys of tables with an end."""

    def wanted(tables: Int16Array, ids: Int64Array) -> BoolArray:
        of_items = (tables == ITEM) | (tables == ~ITEM)
        kept: BoolArray = ~are_endless(tables) | (of_items & in_range(tables, ids, buckets))
        return kept

    return wanted
