"""One global optimizer step on all ranks: from a batch of the stream to updated towers and rows.

Shape letters: E events of this rank, M candidates of all ranks, U unique keys of this rank, D columns.

The loss is a sum over each rank's own events divided by the global count, so the sum of the ranks' gradients is the
gradient of one process that saw everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from cluster.checkpoints.parts.generators import generator_states, restore_generators
from cluster.collectives import Collectives, CrossRankGather
from cluster.config import FreshetConfig
from cluster.tables.sharded_embedding import Lookup, ShardedEmbedding
from cluster.training.steps.candidates import (
    FAILED,
    Candidates,
    GlobalTargets,
    KnownItems,
    Runs,
    choose_candidates,
    gather_targets,
    target_rows,
    uniform_negatives,
)
from cluster.training.steps.refusal import StepRefused, first_failure, may_be_of_events, together
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
from model.two_tower import LossTerms, StepPlan, Targets, TwoTower
from streaming.catalogue.catalogue import Catalogue
from streaming.events.quoting import described


@dataclass(frozen=True)
class _LocalInputs:
    """The part of the preparation that needs no other rank."""

    runs: Runs
    weight_E: npt.NDArray[np.float32]
    latest_ms: int
    keys: KeyCollector
    queries: QueryInputs


@dataclass(frozen=True)
class PreparedStep:
    """A prepared batch: ids replaced by rows, candidates chosen, nothing trained yet."""

    runs: Runs
    queries: QueryInputs
    items: ItemInputs
    targets: Targets
    plan: StepPlan
    lookup: Lookup
    global_targets: GlobalTargets
    new_items: npt.NDArray[np.int64]
    """Items that were unknown before this step's events, int64 (n,)."""


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
        self._comm, self._config, self._device = comm, config, device
        self._ahead: tuple[pa.RecordBatch, _LocalInputs | str] | None = None

    def prepare(self, batch: pa.RecordBatch, step: int, *, known_before: int | None = None) -> PreparedStep:
        """Agree on candidates, and look up every row that the step needs.

        Args:
            batch: this rank's events.
            step: counts from 0.
            known_before: items from this place of the catalogue on are new to the step; default: those that it adds.
        Raises:
            StepRefused: the events of some rank cannot be trained on.
        """
        inputs, agreed = self._agree(batch)
        known_before = self.catalogue.item_count if known_before is None else known_before
        keys, slot = inputs.keys, "log q"
        with together(self._comm, lambda: self._comm.decline(torch.device("cpu"), slot)):
            self.catalogue.add_items(agreed.ids_T)
            candidates = self._candidates(agreed, step)
            mine, is_target = candidates.of_rank(self._comm.rank)
            of_events = len(keys)
            items = item_inputs(mine, self.catalogue.categories, keys, is_target)
            tables, ids = keys.keys()
            drawn_U = (tables == ITEM) & ~np.isin(ids, agreed.ids_T)
            drawn_U[:of_events] = False
            target_E = torch.from_numpy(candidates.positions(inputs.runs.targets_E))
            known_items = KnownItems.of(
                inputs.runs, candidates, past_only=self._config.model.history_mask == "past"
            )
            plan = self.model.plan(inputs.queries, items, seed=self._config.seed, step=step)
            log_q_M, _ = self._comm.gather_rows(self._log_q(mine, agreed), slot)
        given = (inputs.queries, items, plan, target_E, log_q_M, known_items)
        lookup, (queries, items, plan, target_E, log_q_M, known_items) = self.table.lookup_with(
            given, tables, ids, drawn_U=drawn_U, time_ms=agreed.latest_ms
        )
        drop_EM = known_items.to_drop(target_E, log_q_M.shape[0])
        targets = Targets(target_E, log_q_M, drop_EM, float(agreed.weight_T.sum()))
        new_items = self.catalogue.items_at(np.arange(known_before, self.catalogue.item_count))
        return PreparedStep(inputs.runs, queries, items, targets, plan, lookup, agreed, new_items)

    def read_ahead(self, batch: pa.RecordBatch) -> None:
        """Not collective. Do the part of `prepare` that needs no other rank; kept for one call with this very batch."""
        self._ahead = batch, self._read(batch)

    def train(
        self,
        prepared: PreparedStep,
        step: int,
        *,
        decay: float = 1.0,
        score: Callable[[], object] = lambda: None,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> dict[str, float]:
        """Forward, backward, exchange gradients, update. Returns the loss terms that the step takes, summed over ranks.

        Args:
            prepared: the batch.
            step: counts from 0.
            decay: factor of both learning rates, in addition to the warm-up.
            score: collective, called before the forward pass; the step is refused if it fails.
            meanwhile: not collective, called after forward and backward are queued on the device, before the host
                waits; not called if this rank fails before that.
        Raises:
            StepRefused: a loss or a gradient is not finite, or some rank cannot compute it; only the state of dropout
                has changed.
        """
        losses = self._find_gradients(prepared, step, score, meanwhile)
        rate = decay * min(1.0, (step + 1) / max(1, self._config.train.warmup_steps))
        self.optimizer.step(self._config.train.learning_rate * rate)
        self.table.apply_gradients(prepared.lookup, self._config.train.row_learning_rate * rate)
        self._count(prepared.global_targets)
        if (step + 1) % self._config.table.sweep_every == 0:
            self.table.sweep(prepared.global_targets.latest_ms)
        return losses

    def probe(
        self,
        batch: pa.RecordBatch,
        step: int,
        *,
        known_before: int | None = None,
        score: Callable[[PreparedStep], object] = lambda prepared: None,
    ) -> str:
        """Why a step of these events would be refused, "" if it would not; nothing is trained.

        It only adds the events' items to the catalogue, and rows with their initial values. Arguments as for `prepare`
        and `train`.
        """
        generators = generator_states(self._device)
        try:
            prepared = self.prepare(batch, step, known_before=known_before)
            self._find_gradients(prepared, step, lambda: score(prepared))
        except StepRefused as refused:
            return refused.reason
        finally:
            restore_generators(generators, self._device)
        return ""

    def _agree(self, batch: pa.RecordBatch) -> tuple[_LocalInputs, GlobalTargets]:
        """This rank's prepared events and all ranks' targets; all ranks refuse if one cannot prepare its events."""
        ahead, self._ahead = self._ahead, None
        read = ahead[1] if ahead is not None and ahead[0] is batch else self._read(batch)
        inputs, failure = (None, read) if isinstance(read, str) else (read, "")
        mine = FAILED
        if inputs is not None:
            mine = target_rows(inputs.runs.targets_E, inputs.weight_E, inputs.latest_ms)
        agreed = gather_targets(self._comm, mine)
        if inputs is None or agreed is None:
            raise StepRefused(first_failure(self._comm, failure), {})
        return inputs, agreed

    def _read(self, batch: pa.RecordBatch) -> _LocalInputs | str:
        """This rank's prepared events, or the reason why they are unusable."""
        try:
            return self._local_inputs(batch)
        except Exception as error:
            if not may_be_of_events(error, self._comm):
                raise
            # The error is caused by this rank's events alone, and the other ranks wait for it.
            return described(error)

    def _local_inputs(self, batch: pa.RecordBatch) -> _LocalInputs:
        weight_E = batch.column("weight").flatten().to_numpy()
        wrong_E = ~(np.isfinite(weight_E) & (weight_E >= 0))
        if wrong_E.any():
            raise ValueError(f"weights must be finite and not negative, got {weight_E[wrong_E][0]}")
        keys = KeyCollector()
        queries = query_inputs(batch, self.catalogue.categories, keys, self._config.model)
        times = batch.column("times_ms").flatten().to_numpy()
        return _LocalInputs(Runs.of(batch), weight_E, int(times.max(initial=0)), keys, queries)

    def _find_gradients(
        self,
        prepared: PreparedStep,
        step: int,
        score: Callable[[], object],
        meanwhile: Callable[[], object] = lambda: None,
    ) -> dict[str, float]:
        """Forward and backward of all ranks; leaves gradients, or refuses the step."""
        with_views = self._config.model.takes_contrastive(step)
        gather = CrossRankGather(self._comm, self._device, kind=int(with_views))
        with together(self._comm, lambda: self._decline(gather)):
            score()
            if not self.model.training:  # iterating over all modules takes as long as a small matrix product
                self.model.train()
            terms = self.model(
                prepared.lookup.rows_UD,
                prepared.queries,
                prepared.items,
                prepared.targets,
                gather,
                seed=self._config.seed,
                step=step,
                plan=prepared.plan,
            )
            self.optimizer.clear_gradients()
            loss = gather.close(terms.total)
        failure = self._backward(loss, gather)
        names, local = zip(*terms.detached().items(), strict=True)
        wrong = loss.new_full((), math.nan) if failure else _not_finite(prepared.lookup)
        gradient_P, sums = self._reduce_dense(torch.stack([*local, wrong]))
        norm = torch.linalg.vector_norm(gradient_P)
        if (clip := self._config.train.gradient_clip) > 0:
            gradient_P.mul_((clip / (norm + 1e-6)).clamp_max_(1.0))
        # All are sums over ranks, so every rank refuses or none; they are read together, so the host waits once.
        asked = torch.cat([sums, norm.reshape(1)])
        meanwhile()
        numbers = asked.tolist()
        losses = {
            name: value
            for name, value in zip(names, numbers, strict=False)
            if with_views or not name.startswith("contrastive")
        }
        if not all(map(math.isfinite, numbers)):
            said = ", ".join(
                f"{name} {value:g}" for name, value in losses.items() if not math.isfinite(value)
            )
            failure = first_failure(self._comm, failure)
            raise StepRefused(failure or f"{said or 'a gradient'} is not finite", losses)
        return losses

    def _decline(self, gather: CrossRankGather) -> None:
        """Take this rank's part in the others' calls after an error before the backward pass."""
        if not gather.complete:
            gather.decline()
        gather.drain()
        self._reduce_dense(torch.full((len(fields(LossTerms)) + 1,), math.nan, device=self._device))

    def _backward(self, loss: Tensor, gather: CrossRankGather) -> str:
        """Compute gradients, or return why that failed; the sums over ranks are then not finite, and all notice."""
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        except Exception as error:
            if not may_be_of_events(error, self._comm):
                raise
            gather.drain()
            return described(error)
        return ""

    def _candidates(self, agreed: GlobalTargets, step: int) -> Candidates:
        negatives = uniform_negatives(
            self.catalogue.item_count,
            self.catalogue.items_at,
            self._config.model.uniform_negatives,
            seed=self._config.seed,
            step=step,
        )
        ids = np.union1d(agreed.ids_T, negatives)
        return choose_candidates(agreed.ids_T, negatives, self.table.owners(_item_tables(ids), ids))

    def _log_q(self, mine: npt.NDArray[np.int64], agreed: GlobalTargets) -> Tensor:
        """log Q of this rank's candidates, whose frequencies it knows, including this step's events."""
        frequency = self.table.frequencies(_item_tables(mine), mine)
        place = np.searchsorted(agreed.ids_T, mine)
        place_in = np.minimum(place, max(agreed.ids_T.shape[0] - 1, 0))
        if agreed.ids_T.shape[0]:
            frequency = frequency + np.where(agreed.ids_T[place_in] == mine, agreed.weight_T[place_in], 0.0)
        batch_events = float(agreed.weight_T.sum())
        # An item's weights are summed in another order than those of all items, so a share may round to above 1.
        share = np.clip(frequency / max(self.events_seen + batch_events, 1.0), 0.0, 1.0)
        log_q = combined_log_q(
            share,
            batch_events,
            self.catalogue.item_count,
            self._config.model.uniform_negatives,
        )
        return torch.from_numpy(log_q)

    def _reduce_dense(self, terms: Tensor) -> tuple[Tensor, Tensor]:
        """The towers' gradients, one after another, and the loss terms, both summed over ranks in one message."""
        flat = self._comm.all_reduce_sum(self.optimizer.flat_gradients(terms))
        gradient_P, sums = torch.split(flat, [flat.shape[0] - terms.shape[0], terms.shape[0]])
        return gradient_P, sums

    def _count(self, agreed: GlobalTargets) -> None:
        tables = _item_tables(agreed.ids_T)
        owned = self.table.owners(tables, agreed.ids_T) == self._comm.rank
        self.table.count(tables[owned], agreed.ids_T[owned], agreed.weight_T[owned], agreed.latest_ms)
        self.events_seen += float(agreed.weight_T.sum())


def _not_finite(lookup: Lookup) -> Tensor:
    """0 if this rank's row gradients are finite, else NaN; sent with the losses."""
    gradient_UD = lookup.rows_UD.grad
    if gradient_UD is None:
        return lookup.rows_UD.new_zeros(())
    # The norm, because a non-finite square would remain in the row's second moment.
    norm: Tensor = torch.linalg.vector_norm(gradient_UD)
    return norm * 0.0


def _item_tables(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int16]:
    return np.full(ids.shape[0], ITEM, np.int16)
