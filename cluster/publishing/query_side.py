"""What turns a user into a query vector: towers, rows and catalogue of one state, and their form in an index version.

A version holds them as a checkpoint does, without the optimizers, and in `model.json` the settings that describe them.

Shape letters: E events (queries), D columns.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from cluster.checkpoints.part import Saved, ServedPart
from cluster.checkpoints.parts.catalogue import CataloguePart
from cluster.checkpoints.parts.rows import RowPart
from cluster.checkpoints.parts.towers import TowerPart
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.tables.config import TableConfig
from cluster.tables.row_optimizer import row_optimizer
from cluster.tables.sharded_embedding import ShardedEmbedding
from model.cl_epidtn import cl_epidtn
from model.config import ModelConfig
from model.features import KeyCollector, query_inputs
from model.two_tower import TwoTower
from retrieval.storage.durable import write_durably
from retrieval.versions.store import Version
from streaming.catalogue.catalogue import Catalogue
from streaming.config import StreamConfig

DESCRIPTION = "model.json"


@dataclass(frozen=True)
class QuerySide:
    """Towers, rows and catalogue of one state of a model.

    Attributes:
        model: the towers.
        table: the rows; those of this rank where several ranks share them.
        catalogue: items and users.
        config: of the model.
    """

    model: TwoTower
    table: ShardedEmbedding
    catalogue: Catalogue
    config: ModelConfig

    @torch.no_grad()
    def encode(self, batch: pa.RecordBatch) -> npt.NDArray[np.float32]:
        """The query vector of each event, float32 (E, D). Collective if several ranks share the rows.

        Args:
            batch: in TRAINING_BATCH_SCHEMA, as `query_batch.py` makes it.
        """
        if self.model.training:
            self.model.eval()
        keys = KeyCollector()
        queries = query_inputs(batch, self.catalogue.categories, keys, self.config)
        rows_UD = self.table.lookup(*keys.keys(), create=False).rows_UD
        encoded = self.model.encode_queries(rows_UD, queries.to(self.table.device))
        vectors: npt.NDArray[np.float32] = encoded.vectors_ED.cpu().numpy()
        return vectors

    def save(self, folder: Path, config: FreshetConfig, comm: Collectives) -> None:
        """Write what this rank adds to a version; every rank calls it.

        Args:
            folder: of the version that is being built.
            config: the run's.
            comm: of the run.
        """
        for part in self._parts(comm):
            part.publish(folder)
        if comm.rank != 0:
            return
        described = {
            "model": asdict(config.model),
            "user_attributes": config.stream.user_attributes,
            "row_optimizer": config.train.row_optimizer,
            "admit_after": config.table.admit_after,
            "seed": config.seed,
        }
        write_durably(folder / DESCRIPTION, json.dumps(described).encode())

    @staticmethod
    def load(version: Version, stream: StreamConfig) -> QuerySide:
        """Read what `save` wrote, whatever the number of ranks, onto the CPU.

        Args:
            version: verified.
            stream: settings of the catalogue; the user attributes are those of the version.
        """
        saved = json.loads(version.file(DESCRIPTION).read_text())
        known = {f.name for f in fields(ModelConfig)}
        config = ModelConfig(**{k: v for k, v in saved["model"].items() if k in known})
        model = cl_epidtn(config, len(saved["user_attributes"]))
        table = ShardedEmbedding(
            config.dim,
            Collectives(),
            row_optimizer(saved["row_optimizer"]),
            seed=int(saved["seed"]),
            device=torch.device("cpu"),
            init_std=config.init_std,
            limits=TableConfig(admit_after=float(saved.get("admit_after", 1.0))),
        )
        catalogue = Catalogue(replace(stream, user_attributes=saved["user_attributes"]))
        queries = QuerySide(model, table, catalogue, config)
        for part in queries._parts(Collectives()):
            part.restore(Saved(version))
        model.eval()
        return queries

    def _parts(self, comm: Collectives) -> list[ServedPart]:
        """What a version has of a checkpoint's parts."""
        first = comm.rank == 0
        return [
            TowerPart(self.model, writes=first),
            RowPart(self.table, comm.rank, comm.world, state=False),
            CataloguePart(self.catalogue, writes=first),
        ]
