"""One global optimizer step: what the stream gave, to updated towers and rows, on every rank at once.

Shape letters: E events of this rank, M candidates of all ranks, U unique keys of this rank, D columns.

The loss is a sum over each rank's own events divided by the global count, so the sum of the ranks' gradients is the
gradient of one process that saw everything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from cluster.collectives import Collectives, CrossRankGather
from cluster.config import FreshetConfig
from cluster.tables.sharded_embedding import Lookup, ShardedEmbedding
from cluster.training.candidates import (
    Candidates,
    GlobalTargets,
    Runs,
    choose_candidates,
    gather_targets,
    negatives_to_drop,
    uniform_negatives,
)
from model.features import (
    ITEM,
    ItemInputs,
    KeyCollector,
    QueryInputs,
    item_inputs,
    query_inputs,
)
from model.frequency import combined_log_q
from model.tower_optimizer import TowerOptimizer
from model.two_tower import Targets, TwoTower
from streaming.catalogue import Catalogue


@dataclass(frozen=True)
class PreparedStep:
    """A batch on its way: ids replaced by rows, candidates chosen, nothing trained yet."""

    runs: Runs
    queries: QueryInputs
    items: ItemInputs
    targets: Targets
    lookup: Lookup
    global_targets: GlobalTargets
    new_items: npt.NDArray[np.int64]
    """Items that nobody had heard of before this step's events, int64 (n,)."""


class TrainStep:
    """Prepares and trains global steps; owns the towers' optimizer. Every method is collective."""

    def __init__(
        self,
        model: TwoTower,
        table: ShardedEmbedding,
        catalogue: Catalogue,
        comm: Collectives,
        config: FreshetConfig,
        device: torch.device,
    ) -> None:
        self.model, self.table, self.catalogue = model, table, catalogue
        self.optimizer = TowerOptimizer(model.parameters(), config.train.weight_decay)
        self.events_seen = 0.0
        """Summed weight of all trained events, the denominator of an item's frequency."""
        self.refused = False
        """Whether the last step was not applied: a loss or a gradient was not finite. The same on every rank."""
        self._parameters = list(model.parameters())
        self._comm, self._config, self._device = comm, config, device

    def prepare(self, batch: pa.RecordBatch, step: int) -> PreparedStep:
        """Agree on candidates, look up every row that the step needs."""
        runs = Runs.of(batch)
        weight_E = batch.column("weight").flatten().to_numpy()
        times = batch.column("times_ms").values.to_numpy()
        latest = int(times.max(initial=0))
        agreed = gather_targets(self._comm, runs.targets_E, weight_E, latest)
        known_before = self.catalogue.item_ids.shape[0]
        self.catalogue.add_items(agreed.ids_T)
        new_items = self.catalogue.item_ids[known_before:]
        candidates = self._candidates(agreed, step)
        mine, is_target = candidates.of_rank(self._comm.rank)
        keys = KeyCollector()
        queries = query_inputs(batch, self.catalogue.categories, keys, self._config.model)
        of_events = len(keys)
        items = item_inputs(mine, self.catalogue.categories, keys, is_target)
        tables, ids = keys.keys()
        drawn_U = (tables == ITEM) & ~np.isin(ids, agreed.ids_T)
        drawn_U[:of_events] = False
        lookup = self.table.lookup(tables, ids, drawn_U=drawn_U, time_ms=agreed.latest_ms)
        targets = Targets(
            target_E=torch.from_numpy(candidates.positions(runs.targets_E)).to(self._device),
            log_q_M=self._log_q(mine, agreed).to(self._device),
            drop_EM=torch.from_numpy(
                negatives_to_drop(runs, candidates, past_only=self._config.model.history_mask == "past")
            ).to(self._device),
            global_events=float(agreed.weight_T.sum()),
        )
        return PreparedStep(
            runs, queries.to(self._device), items.to(self._device), targets, lookup, agreed, new_items
        )

    def train(self, prepared: PreparedStep, step: int, *, decay: float = 1.0) -> dict[str, float]:
        """Forward, backward, exchange gradients, update. Returns every loss term, summed over ranks.

        A step with a loss or a gradient that is not finite changes nothing but the state of dropout: see `refused`.

        Args:
            prepared: the batch.
            step: counts from 0.
            decay: factor of both learning rates, beside the warm-up.
        """
        if not self.model.training:  # walking all modules takes as long as a small matrix product
            self.model.train()
        gather = CrossRankGather(self._comm, self._device)
        terms = self.model(
            prepared.lookup.rows_UD,
            prepared.queries,
            prepared.items,
            prepared.targets,
            gather,
            seed=self._config.seed,
            step=step,
        )
        self.optimizer.clear_gradients()
        gather.close(terms.total).backward()  # type: ignore[no-untyped-call]
        names, local = zip(*terms.detached().items(), strict=True)
        sums = self._reduce_dense(torch.stack([*local, _not_finite(prepared.lookup)]))
        losses = dict(zip(names, sums.tolist(), strict=False))
        clip = self._config.train.gradient_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, clip)
        # Both come from sums over the ranks, so every rank refuses or none.
        self.refused = not (bool(torch.isfinite(sums).all()) and bool(torch.isfinite(norm)))
        if self.refused:
            return losses
        rate = decay * min(1.0, (step + 1) / max(1, self._config.train.warmup_steps))
        self.optimizer.step(self._config.train.learning_rate * rate)
        self.table.apply_gradients(prepared.lookup, self._config.train.row_learning_rate * rate)
        self._count(prepared.global_targets)
        if (step + 1) % self._config.table.sweep_every == 0:
            self.table.sweep(prepared.global_targets.latest_ms)
        return losses

    def _candidates(self, agreed: GlobalTargets, step: int) -> Candidates:
        negatives = uniform_negatives(
            self.catalogue.item_ids,
            self._config.model.uniform_negatives,
            seed=self._config.seed,
            step=step,
        )
        ids = np.union1d(agreed.ids_T, negatives)
        return choose_candidates(agreed.ids_T, negatives, self.table.owners(_item_tables(ids), ids))

    def _log_q(self, mine: npt.NDArray[np.int64], agreed: GlobalTargets) -> Tensor:
        """log Q of every candidate: each owner knows the frequencies of its own, this step's events included."""
        frequency = self.table.frequencies(_item_tables(mine), mine)
        place = np.searchsorted(agreed.ids_T, mine)
        place_in = np.minimum(place, max(agreed.ids_T.shape[0] - 1, 0))
        if agreed.ids_T.shape[0]:
            frequency = frequency + np.where(agreed.ids_T[place_in] == mine, agreed.weight_T[place_in], 0.0)
        batch_events = float(agreed.weight_T.sum())
        log_q = combined_log_q(
            frequency / max(self.events_seen + batch_events, 1.0),
            batch_events,
            self.catalogue.item_ids.shape[0],
            self._config.model.uniform_negatives,
        )
        gathered, _ = self._comm.gather_rows(torch.from_numpy(log_q), "log q")
        return gathered

    def _reduce_dense(self, terms: Tensor) -> Tensor:
        """Sum the towers' gradients, and the loss terms beside them, over ranks in one message."""
        if self._comm.world == 1:
            return terms
        parts = [
            p.grad.reshape(-1) if p.grad is not None else torch.zeros(p.numel(), device=self._device)
            for p in self._parameters
        ]
        flat = self._comm.all_reduce_sum(torch.cat([*parts, terms.to(parts[0].dtype)]))
        start = 0
        for parameter in self._parameters:
            parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        return flat[start:]

    def _count(self, agreed: GlobalTargets) -> None:
        tables = _item_tables(agreed.ids_T)
        owned = self.table.owners(tables, agreed.ids_T) == self._comm.rank
        self.table.count(tables[owned], agreed.ids_T[owned], agreed.weight_T[owned], agreed.latest_ms)
        self.events_seen += float(agreed.weight_T.sum())


def _not_finite(lookup: Lookup) -> Tensor:
    """0 if this rank's row gradients are finite, else NaN: travels with the losses."""
    gradient_UD = lookup.rows_UD.grad
    if gradient_UD is None:
        return lookup.rows_UD.new_zeros(())
    return gradient_UD.sum() * 0.0


def _item_tables(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int16]:
    return np.full(ids.shape[0], ITEM, np.int16)
