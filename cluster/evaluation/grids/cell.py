"""One cell of an evaluation: one system with one seed and one set of settings, trained and tested once."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from cluster.device import resolve_device
from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.grids.code_version import code_of
from cluster.evaluation.grids.walk_forward import walk
from cluster.evaluation.measuring.measures import RankedTargets, ranked_targets
from cluster.evaluation.measuring.ranking import Ranking
from cluster.evaluation.protocol.data import EvaluationData, Tables, prepare
from cluster.evaluation.systems.fitting import FitPlan, Fitted, PassReport, fit
from cluster.evaluation.systems.overrides import leaves
from cluster.evaluation.systems.systems import SYSTEMS, create
from model.retrieval_model import RetrievalModel

FORMAT = 2
"""Format of a cell's result; a result of another format is another cell."""


@cache
def default_settings() -> Mapping[str, Any]:
    """The default of every setting, by dotted key."""
    return dict(leaves(OfflineConfig()))


@dataclass(frozen=True)
class Cell:
    """What is to be run."""

    system: str
    seed: int
    config: OfflineConfig
    """Everything applied: tuned, swept and forced settings, and the seed."""
    data_fingerprint: str
    point: Mapping[str, Any] = field(default_factory=dict)
    """The sweep's values of this cell."""
    trial: int = 0
    """The number of a search's trial, from 1; a trial uses validation only and does not rank the test. 0: no trial."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the result depends on, by dotted key."""
        system = SYSTEMS[self.system]
        return {key: value for key, value in leaves(self.config) if system.influences(key)}

    @property
    def key(self) -> str:
        """The result's name: equal for equal work, also across sweeps, and different if any setting differs.

        Settings with default values are not in it, so that a version with a new setting still finds results from before
        it. CellFiles checks that the defaults have not changed.
        """
        seed = self.seed if SYSTEMS[self.system].depends_on_seed else 0
        defaults = default_settings()
        changed = {name: value for name, value in self.settings.items() if value != defaults[name]}
        depends = [FORMAT, self.system, seed, self.trial > 0, self.data_fingerprint, changed]
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
        return f"{self.system}-{'trial' if self.trial else f'seed{seed}'}-{digest[:16]}"

    @property
    def passes(self) -> int:
        """Maximum number of passes over the data."""
        return self.config.fit.passes if SYSTEMS[self.system].trained else 1


@dataclass(frozen=True)
class CellResult:
    """What came out."""

    key: str
    system: str
    seed: int
    code: str
    """See code_version.code_of."""
    settings: dict[str, Any]
    data: dict[str, Any]
    """Name, fingerprint and sizes."""
    fitted: Fitted
    wall_s: float
    figures: dict[str, float]
    """See RankedTargets.figures; empty for a trial."""
    ranks: RankedTargets | None

    @property
    def validation(self) -> float:
        """HR@10 on the validation queries: of the best pass, or of the walk-forward through them."""
        if self.fitted.walk_validation is not None:
            return self.fitted.walk_validation
        return max(self.fitted.validation, default=math.nan)


def run_cell(
    cell: Cell, tables: Tables, tell: Callable[[PassReport], None] = lambda report: None
) -> CellResult:
    """Trains on the training events, returns to the best pass, and ranks the test's targets once; a walk-forward also
    trains between its stages.

    Args:
        cell: what to run.
        tables: the data set, whose fingerprint is the cell's.
        tell: called after every validated pass.
    """
    started = time.perf_counter()
    torch.set_num_threads(cell.config.fit.threads)
    system, config = SYSTEMS[cell.system], cell.config
    data = prepare(tables, config)
    recommender = create(system, config, data.catalogue, data.item_ids, resolve_device(config.device))
    plan = FitPlan.of(config, trained=system.trained, tell=tell)
    fitted = fit(recommender, data.split, data.item_ids, plan)
    ranking = _test_ranking(cell, data, recommender, fitted, plan)
    ranks = ranked_targets(data, ranking) if ranking is not None else None
    return CellResult(
        key=cell.key,
        system=cell.system,
        seed=cell.seed,
        code=code_of(system),
        settings=cell.settings,
        data=_described(tables, cell, data),
        fitted=fitted,
        wall_s=time.perf_counter() - started,
        figures=ranks.figures() if ranks is not None else {},
        ranks=ranks,
    )


def _test_ranking(
    cell: Cell, data: EvaluationData, recommender: RetrievalModel, fitted: Fitted, plan: FitPlan
) -> Ranking | None:
    """The test's targets, ranked after a walk-forward up to them if there is one; None for a trial."""
    if not data.split.stages:
        if cell.trial:
            return None
        return plan.rank(recommender, data.interactions, data.split.test, data.item_ids)
    ranking = walk(recommender, data.split, data.item_ids, plan, fitted, test=not cell.trial)
    return None if cell.trial else ranking


def _described(tables: Tables, cell: Cell, data: EvaluationData) -> dict[str, Any]:
    return {
        "name": tables.name,
        "fingerprint": cell.data_fingerprint,
        "users": int(data.interactions.user_U.shape[0]),
        "items": int(data.item_ids.shape[0]),
        "events": int(data.interactions.item_T.shape[0]),
        "training_events": int(data.split.train_U.sum()),
        "validation_queries": len(data.split.validation),
        "test_queries": len(data.split.test),
        "test_targets": int(data.split.test.target_G.shape[0]),
    }
