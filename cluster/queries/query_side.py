"""The query side, which encodes users: towers, rows and catalogue of one state, and their form in an index version.

A version holds them like a checkpoint, without optimizer state, plus the settings that describe them in `model.json`.

Shape letters: E events (queries), D columns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from cluster.checkpoints.part import Saved
from cluster.checkpoints.parts.catalogue import CataloguePart
from cluster.checkpoints.parts.id_texts import ITEMS as ITEM_TEXTS
from cluster.checkpoints.parts.id_texts import read_texts
from cluster.checkpoints.parts.rows import frozen_rows
from cluster.checkpoints.parts.towers import TowerPart
from cluster.config import FreshetConfig
from cluster.queries.changes import Changes
from cluster.queries.saved_catalogue import SavedCatalogue
from cluster.queries.towers import towers_to_fill
from cluster.tables.config import TableConfig
from cluster.tables.frozen_rows import FrozenRows, RowSettings, of_keys
from cluster.tables.overlaid_rows import OverlaidRows
from model.config import ModelConfig
from model.features import KeyCollector, query_inputs
from model.transfer import to_device
from model.two_tower import TwoTower
from retrieval.storage.durable import write_durably
from retrieval.versions.store import Version
from streaming.arrays import Int16Array, Int64Array
from streaming.catalogue.catalogue import Catalogue
from streaming.catalogue.overlaid import OverlaidCatalogue, ReadCatalogue
from streaming.config import StreamConfig
from streaming.events.schema import ITEMS, NEGATIVES, USER_ID

DESCRIPTION = "model.json"


class Rows(Protocol):
    """`FrozenRows`, or the `ShardedEmbedding` of a run."""

    def rows_of(self, tables: Int16Array, ids: Int64Array) -> Tensor:
        """The rows of unique keys, float32 (1 + K, D); row 0 is the zero padding row."""


@dataclass(frozen=True)
class QuerySide:
    """Towers, rows and catalogue of one state of a model.

    Attributes:
        model: the towers.
        rows: the rows; a `ShardedEmbedding` makes `encode` collective if several ranks share it.
        catalogue: items and users.
        config: of the model.
    """

    model: TwoTower
    rows: Rows
    catalogue: ReadCatalogue
    config: ModelConfig

    def advance(self, changes: Changes) -> QuerySide:
        """The query side after the changes of a delta; it shares the towers and all that did not change with this one.

        Raises:
            RowWidthError, ValueError: the changes are of a model with other settings.
        """
        rows, catalogue = self.rows, self.catalogue
        if isinstance(rows, FrozenRows):
            rows = OverlaidRows(rows)
        if isinstance(catalogue, Catalogue):
            catalogue = OverlaidCatalogue(catalogue)
        assert isinstance(rows, OverlaidRows), "only frozen rows can be advanced"
        assert isinstance(catalogue, OverlaidCatalogue), "only the catalogue of a version can be advanced"
        return replace(
            self, rows=rows.with_changes(changes.rows), catalogue=catalogue.with_update(changes.catalogue)
        )

    @torch.no_grad()
    def encode(self, batch: pa.RecordBatch) -> npt.NDArray[np.float32]:
        """The query vector of each event, float32 (E, D).

        Args:
            batch: in TRAINING_BATCH_SCHEMA, from `query_batch.py`.
        """
        if self.model.training:
            self.model.eval()
        keys = KeyCollector()
        queries = query_inputs(batch, self.catalogue.categories, keys, self.config)
        device = next(self.model.parameters()).device
        rows_UD = self.rows.rows_of(*keys.keys())
        if rows_UD.device == device:
            queries = queries.to(device)
        else:
            rows_UD, queries = to_device((rows_UD, queries), device)
        encoded = self.model.encode_queries(rows_UD, queries)
        vectors: npt.NDArray[np.float32] = encoded.vectors_ED.cpu().numpy()
        return vectors

    @staticmethod
    def of(
        saved: Saved,
        model: TwoTower,
        settings: RowSettings,
        stream: StreamConfig,
        batches: Sequence[pa.RecordBatch],
    ) -> QuerySide:
        """Read only the part of a checkpoint or version that some batches need.

        Args:
            saved: rows and catalogue.
            model: its towers.
            settings: of its rows.
            stream: settings of the catalogue.
            batches: all that will be encoded; TRAINING_BATCH_SCHEMA.
        """
        items, users = _ids_in(batches)
        catalogue, keys = SavedCatalogue.open(saved).only(items, users, stream), KeyCollector()
        for batch in batches:
            query_inputs(batch, catalogue.categories, keys, model.config)
        rows = frozen_rows(saved, settings, wanted=of_keys(*keys.keys()))
        return QuerySide(model, rows, catalogue, model.config)

    @staticmethod
    def load(
        version: Version, stream: StreamConfig, only: Sequence[pa.RecordBatch] | None = None
    ) -> QuerySide:
        """Read the query side of a version, written by any number of ranks, onto the CPU.

        Args:
            version: verified.
            stream: settings of the catalogue; the user attributes are those of the version.
            only: the batches that will be encoded, if known; then only the part that they need is read.

        No random numbers are drawn, so this can run during training.
        """
        saved, towers = Saved(version), SavedTowers.load(version)
        model, settings, stream = (
            towers.model,
            towers.rows,
            replace(stream, user_attributes=towers.attributes),
        )
        if only is not None:
            return QuerySide.of(saved, model, settings, stream, only)
        catalogue = Catalogue(stream)
        CataloguePart(catalogue).restore(saved)
        read_texts(saved.files(ITEM_TEXTS), catalogue.texts.items)
        return QuerySide(model, frozen_rows(saved, settings), catalogue, model.config)


@dataclass(frozen=True)
class SavedTowers:
    """The towers of a version, and what its `model.json` says of the rest of the query side.

    Attributes:
        model: on the CPU, in evaluation mode.
        rows: settings of the rows.
        attributes: names of the user attributes.
    """

    model: TwoTower
    rows: RowSettings
    attributes: list[str]

    @staticmethod
    def load(version: Version) -> SavedTowers:
        """Read them from a verified version; draws no random numbers."""
        described = json.loads(version.file(DESCRIPTION).read_text())
        known = {f.name for f in fields(ModelConfig)}
        config = ModelConfig(**{k: v for k, v in described["model"].items() if k in known})
        model = towers_to_fill(config, len(described["user_attributes"]))
        limits = TableConfig(admit_after=float(described.get("admit_after", 1.0)))
        rows = RowSettings(config.dim, int(described["seed"]), config.init_std, limits.has_shared_rows)
        TowerPart(model).restore(Saved(version))
        model.eval()
        return SavedTowers(model, rows, described["user_attributes"])


def _ids_in(batches: Sequence[pa.RecordBatch]) -> tuple[Int64Array, Int64Array]:
    """The distinct items and users of batches, int64."""
    lists = [batch.column(name) for batch in batches for name in (ITEMS, NEGATIVES)]
    items = [column.flatten().to_numpy() for column in lists]
    users = [batch.column(USER_ID).to_numpy() for batch in batches]
    none = np.zeros(0, np.int64)
    return np.unique(np.concatenate([none, *items])), np.unique(np.concatenate([none, *users]))


def describe(folder: Path, config: FreshetConfig) -> None:
    """Write the settings that describe the query side into a version that is being built."""
    write_durably(folder / DESCRIPTION, json.dumps(_description(config)).encode())


def is_described(version: Version, config: FreshetConfig) -> bool:
    """Whether a version's query side has these settings."""
    described: object = json.loads(version.file(DESCRIPTION).read_text())
    return bool(described == json.loads(json.dumps(_description(config))))


def _description(config: FreshetConfig) -> dict[str, object]:
    return {
        "model": asdict(config.model),
        "user_attributes": config.stream.user_attributes,
        "row_optimizer": config.train.row_optimizer,
        "admit_after": config.table.admit_after,
        "seed": config.seed,
    }
