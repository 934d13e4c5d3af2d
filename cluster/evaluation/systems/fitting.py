"""Passes over the training events with validation after each, ending at the best one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from cluster.evaluation.config import FitConfig, OfflineConfig
from cluster.evaluation.measuring.ranking import Ranking, rank
from cluster.evaluation.protocol.batches import PassSettings, TrainingPasses
from cluster.evaluation.protocol.interactions import Interactions
from cluster.evaluation.protocol.protocols import Queries, Split
from model.metrics import hit_rate
from model.retrieval_model import RetrievalModel
from streaming.arrays import Int64Array


@dataclass
class Fitted:
    """The cost and the results of fitting."""

    best_pass: int = 0
    """Counts from 1."""
    validation: list[float] = field(default_factory=list)
    """HR@10 after each validated pass."""
    walk_validation: float | None = None
    """HR@10 of a walk-forward's stages before the test."""
    train_s: float = 0.0
    """Wall seconds of training, validation not included."""
    examples: int = 0
    refused_steps: int = 0
    """Steps that were refused because a loss or a gradient was not finite."""

    @property
    def examples_per_s(self) -> float:
        """Events to predict per second of training."""
        return self.examples / self.train_s if self.train_s > 0 else math.nan


@dataclass(frozen=True)
class PassReport:
    """The progress of a fit."""

    number: int
    passes: int
    loss: float
    validation: float
    """HR@10 of the pass, or of the stage."""
    best: float
    stage: int = 0
    """Number of the walk-forward's stage, from 1; 0 before it begins."""
    stages: int = 0


@dataclass(frozen=True)
class FitPlan:
    """How one recommender is fitted, and how it is ranked in validations.

    Attributes:
        fit: learning rates and sizes.
        batches: how the events are cut.
        exclude_seen: whether items that a user has had are left out of the ranking.
        passes: over the training events.
        walk_passes: over each stage of a walk-forward.
        tell: called with a report after every pass and every stage.
    """

    fit: FitConfig
    batches: PassSettings
    exclude_seen: bool
    passes: int
    walk_passes: int
    tell: Callable[[PassReport], None] = lambda report: None

    @classmethod
    def of(
        cls,
        config: OfflineConfig,
        *,
        trained: bool = True,
        tell: Callable[[PassReport], None] = lambda report: None,
    ) -> FitPlan:
        """The plan in the configuration; a system that is not `trained` by gradients reads everything once."""
        passes = (config.fit.passes, config.fit.walk_passes) if trained else (1, 1)
        return cls(config.fit, PassSettings.of(config), config.protocol.exclude_seen, *passes, tell)

    def rank(
        self, recommender: RetrievalModel, interactions: Interactions, queries: Queries, item_ids: Int64Array
    ) -> Ranking:
        """The queries' targets among all items; see `ranking.rank`."""
        return rank(
            recommender,
            interactions,
            queries,
            item_ids,
            window=self.batches.window,
            exclude_seen=self.exclude_seen,
        )


def fit(recommender: RetrievalModel, split: Split, item_ids: Int64Array, plan: FitPlan) -> Fitted:
    """Trains on all training events `plan.passes` times, and returns to the pass with the best validation HR@10.

    Args:
        recommender: not trained yet.
        split: training events and validation queries; the test is not used.
        item_ids: int64, ascending, all items that are ranked.
        plan: how.
    """
    config, passes = plan.fit, plan.passes
    reader = TrainingPasses(split, plan.batches)
    queries = split.validation.some(config.validation_users, 0)
    total = reader.steps() * passes
    fitted, step, best, since_best, state = Fitted(), 0, -1.0, 0, None
    for number in range(1, passes + 1):
        started, losses = time.perf_counter(), []
        for batch in reader.batches(number):
            terms = recommender.train_on(batch, decay=decay(config, step, total))
            losses.append(terms.get("total", math.nan))
            fitted.refused_steps += "refused" in terms
            step += 1
        recommender.end_pass()
        fitted.train_s += time.perf_counter() - started
        fitted.examples += reader.targets
        if number % config.validate_every and number < passes:
            continue
        ranking = plan.rank(recommender, split.interactions, queries, item_ids)
        score = hit_rate(ranking.rank_G, 10) if len(queries) else 0.0
        fitted.validation.append(score)
        since_best += 1
        if score > best:
            best, since_best, fitted.best_pass = score, 0, number
            state = recommender.state() if number < passes else None
        plan.tell(PassReport(number, passes, float(np.mean(losses)), score, best))
        if config.patience and since_best >= config.patience:
            break
    if state is not None:
        recommender.load_state(state)
    return fitted


def decay(config: FitConfig, step: int, steps: int) -> float:
    """Factor of the learning rates at a step of `steps`: 1, or a half cosine from 1 to 0."""
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * min(step / max(1, steps), 1.0)))
