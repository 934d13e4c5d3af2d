"""Walk-forward: each time span is predicted from its start, then trained on, as on a stream."""

from __future__ import annotations

import math
import time

import numpy as np

from cluster.evaluation.measuring.ranking import Ranking
from cluster.evaluation.protocol.batches import TrainingPasses
from cluster.evaluation.protocol.protocols import Split
from cluster.evaluation.systems.fitting import FitPlan, Fitted, PassReport
from model.metrics import hit_rate
from model.retrieval_model import RetrievalModel
from streaming.arrays import Float64Array, Int64Array


def walk(
    recommender: RetrievalModel,
    split: Split,
    item_ids: Int64Array,
    plan: FitPlan,
    fitted: Fitted,
    *,
    test: bool = True,
) -> Ranking:
    """For each stage of a split, ranks its queries, then trains on its events.

    Args:
        recommender: fitted on the events before the stages.
        split: with stages.
        item_ids: int64, ascending, all items that are ranked.
        plan: how to train; with `mask_all`, events after a stage are not masked in it.
        fitted: gets the time and examples of training, and `walk_validation`.
        test: whether to continue with the test.
    Returns:
        The ranks of `split.test`, or None.
    """
    config = plan.fit
    validation: list[Float64Array] = []
    tested: list[Float64Array] = []
    stages = [stage for stage in split.stages if test or not stage.tested]
    for number, stage in enumerate(stages):
        ranking = plan.rank(recommender, split.interactions, stage.queries, item_ids)
        (tested if stage.tested else validation).append(ranking.rank_G)
        if number + 1 < len(stages):
            started = time.perf_counter()
            reader = TrainingPasses(split, plan.batches, stage)
            for again in range(plan.walk_passes):
                for batch in reader.batches(config.passes + 1 + number * plan.walk_passes + again):
                    fitted.refused_steps += "refused" in recommender.train_on(batch, decay=config.walk_rate)
                fitted.examples += reader.targets
            recommender.end_pass()
            fitted.train_s += time.perf_counter() - started
        found = hit_rate(ranking.rank_G, 10) if len(ranking.rank_G) else math.nan
        best = max(fitted.validation, default=math.nan)
        plan.tell(PassReport(config.passes, config.passes, math.nan, found, best, number + 1, len(stages)))
    fitted.walk_validation = hit_rate(np.concatenate(validation), 10) if any(map(len, validation)) else 0.0
    rank_G = np.concatenate(tested) if tested else np.zeros(0)
    query_G = np.repeat(np.arange(len(split.test)), np.diff(split.test.target_offset_Q1))
    return Ranking(rank_G, query_G[: len(rank_G)])
