"""A two-tower system as a RetrievalModel, trained by the streaming trainer's own step in one process."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.evaluation.config import FitConfig
from cluster.tables.row_optimizer import row_optimizer
from cluster.tables.sharded_embedding import ShardedEmbedding
from cluster.training.steps.refusal import StepRefused
from cluster.training.steps.train_step import TrainStep
from model.features import KeyCollector, item_inputs, query_inputs
from model.precision import use_precision
from model.two_tower import TwoTower
from streaming.arrays import Float32Array, Int64Array
from streaming.catalogue.catalogue import Catalogue

_log = logging.getLogger(__name__)

_ITEMS_AT_ONCE = 65_536


class TrainedRecommender:
    """Trains and encodes with the tables and the step of the stream.

    Args:
        model: fresh towers.
        catalogue: all items with their categories.
        config: model, seed, device.
        fit: learning rates; the stream's (`config.train`) are not used.
        device: where the towers are.
    """

    def __init__(
        self,
        model: TwoTower,
        catalogue: Catalogue,
        config: FreshetConfig,
        fit: FitConfig,
        device: torch.device,
    ) -> None:
        comm = Collectives()
        train = replace(
            config.train,
            learning_rate=fit.learning_rate,
            row_learning_rate=fit.row_learning_rate,
            warmup_steps=fit.warmup_steps,
            weight_decay=fit.weight_decay,
            gradient_clip=fit.gradient_clip,
        )
        self._config = replace(config, model=model.config, train=train)
        self._catalogue, self._device = catalogue, device
        self.model = model.to(device)
        use_precision(self.model, config.precision)
        self.table = ShardedEmbedding(
            model.config.dim,
            comm,
            row_optimizer(fit.row_optimizer),
            seed=config.seed,
            device=device,
            init_std=model.config.init_std,
        )
        self._train_step = TrainStep(self.model, self.table, catalogue, comm, self._config, device)
        self._step = 0

    def train_on(self, batch: pa.RecordBatch, *, decay: float = 1.0) -> Mapping[str, float]:
        """See RetrievalModel: one optimizer step; one that is refused is left out, with a warning and "refused": 1."""
        step, self._step = self._step, self._step + 1
        try:
            return self._train_step.train(self._train_step.prepare(batch, step), step, decay=decay)
        except StepRefused as refused:
            _log.warning("step %d: %s", step, refused)
            return {**refused.losses, "refused": 1.0}

    def end_pass(self) -> None:
        """See RetrievalModel: a step has been done for every batch, nothing is left to do."""

    @torch.no_grad()
    def encode_users(self, batch: pa.RecordBatch) -> Float32Array:
        """See RetrievalModel."""
        self.model.eval()
        keys = KeyCollector()
        queries = query_inputs(batch, self._catalogue.categories, keys, self.model.config).to(self._device)
        rows_UD = self.table.lookup(*keys.keys(), create=False).rows_UD
        vectors: Float32Array = self.model.encode_queries(rows_UD, queries).vectors_ED.cpu().numpy()
        return vectors

    @torch.no_grad()
    def encode_items(self, item_ids: Int64Array) -> Float32Array:
        """See RetrievalModel."""
        self.model.eval()
        parts = []
        for start in range(0, item_ids.shape[0], _ITEMS_AT_ONCE):
            keys = KeyCollector()
            items = item_inputs(item_ids[start : start + _ITEMS_AT_ONCE], self._catalogue.categories, keys)
            rows_UD = self.table.lookup(*keys.keys(), create=False).rows_UD
            parts.append(self.model.encode_items(rows_UD, items.to(self._device)).vectors_CD.cpu().numpy())
        return np.concatenate(parts)

    @torch.no_grad()
    def scores(self, users: Float32Array, items: Float32Array) -> Float32Array:
        """See RetrievalModel: the model's own comparison."""
        queries, known = torch.from_numpy(users), torch.from_numpy(items)
        scores: Float32Array = (
            self.model.scores(queries.to(self._device), known.to(self._device)).cpu().numpy()
        )
        return scores

    def state(self) -> Any:
        """See RetrievalModel: towers and row values (what encoding reads; not the optimizer's)."""
        return copy.deepcopy(self.model.state_dict()), self.table.values_CD[: len(self.table)].clone()

    def load_state(self, state: Any) -> None:
        """See RetrievalModel. A row that came later gets the value it began with: as such it was encoded before."""
        towers, values_KD = state
        self.model.load_state_dict(towers)
        known = values_KD.shape[0]  # rows are never removed here, so the first ones are the same as then
        self.table.values_CD[:known] = values_KD
        later = self.table.rows()[known:]
        self.table.put(later, self.table.initial(*self.table.keys_of(later)))
