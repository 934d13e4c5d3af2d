"""Systems compared on data at rest, with their towers on the device."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.collectives import Collectives
from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.protocol.data import prepare
from cluster.evaluation.systems.fitting import FitPlan, fit
from cluster.evaluation.systems.overrides import with_settings
from cluster.evaluation.systems.systems import SYSTEMS, create
from tests.support.checkpoint_recommender import recommender_of
from tests.support.checkpointing import save_checkpoint
from tests.support.data_tables import random_tables
from tests.support.device_runs import config_of, train_and_score
from tests.support.unit_runs import CPU, open_run

TINY = with_settings(
    OfflineConfig(),
    {
        "model.dim": 8,
        "model.dropout": 0.0,
        "model.augmented_dim": 4,
        "model.uniform_negatives": 5,
        "model.history_length": 10,
        "fit.batch_targets": 100,
        "fit.warmup_steps": 2,
        "fit.passes": 1,
        "device": "cpu",
    },
)
DATA = prepare(random_tables(events=250), TINY)
TOWERS = {system.source: name for name, system in SYSTEMS.items() if system.trained}
"""One system for each kind of towers: the others are settings of them, which `test_training.py` trains."""


def _ranked(name, device):
    config = SYSTEMS[name].settings_of(TINY, {}, {})
    recommender = create(SYSTEMS[name], config, DATA.catalogue, DATA.item_ids, device)
    plan = FitPlan.of(config)
    plan = replace(plan, batches=replace(plan.batches, mask_all=True, seed=1), exclude_seen=True)
    fitted = fit(recommender, DATA.split, DATA.item_ids, plan)
    found = plan.rank(recommender, DATA.interactions, DATA.split.test, DATA.item_ids)
    return fitted.validation, found.rank_G


@pytest.mark.parametrize("name", TOWERS.values())
def test_every_kind_of_towers_ranks_as_it_does_on_the_cpu(gpu, name):
    wanted, found = _ranked(name, CPU), _ranked(name, gpu.device)
    assert found[0] == pytest.approx(wanted[0], abs=0.05)
    # A tie that rounding decides otherwise moves a rank by one.
    assert np.median(np.abs(found[1] - wanted[1])) <= 0.5


def test_a_checkpoint_of_the_stream_ranks_on_the_device(gpu, tmp_path):
    run = open_run(config_of("the defaults"), device=gpu.device)
    train_and_score(run, 2)
    checkpoint = save_checkpoint(run, CheckpointStore(tmp_path), Collectives())
    items = run.catalogue.item_ids
    here, there = (recommender_of(checkpoint, device).encode_items(items) for device in (CPU, gpu.device))
    torch.testing.assert_close(torch.from_numpy(there), torch.from_numpy(here))
