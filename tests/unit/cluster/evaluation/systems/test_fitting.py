"""Passes, validation after each, and the return to the best one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.evaluation.config import FitConfig, OfflineConfig
from cluster.evaluation.protocol.batches import PassSettings, TrainingPasses, query_batches
from cluster.evaluation.protocol.data import prepare
from cluster.evaluation.systems.fitting import FitPlan, fit
from cluster.evaluation.systems.trained import TrainedRecommender
from model.cl_epidtn import CLEPIDTN
from model.config import ModelConfig
from streaming.config import StreamConfig
from tests.support.data_tables import random_tables

CONFIG = replace(
    OfflineConfig(),
    stream=StreamConfig(user_attributes=["gender"]),
    model=ModelConfig(dim=8, heads=2, layers=1, history_length=5, augmented_dim=4, uniform_negatives=5),
)
DATA = prepare(random_tables(users=30, items=20), CONFIG)
BATCHES = PassSettings(batch_targets=64, window=5, mask_all=True, first_events=False, seed=1)
USERS = len(DATA.split.validation)


class Scripted:
    """After pass n it ranks the target of `script[n - 1]` of all validation queries first and the others last."""

    def __init__(self, script):
        self.script, self.passes, self.decays, self.rows, self.loaded = script, 0, [], [], []

    def train_on(self, batch, *, decay):
        self.decays.append(decay)
        self.rows.append(batch.num_rows)
        return {"total": 1.0}

    def end_pass(self):
        self.passes += 1

    def encode_users(self, batch):
        assert batch.num_rows == USERS
        return np.arange(USERS)

    def encode_items(self, item_ids):
        return item_ids

    def scores(self, users, items):
        hits = round(self.script[self.passes - 1] * USERS)
        is_target_QI = items == DATA.split.validation.target_G[:, None]
        return np.where(users[:, None] < hits, is_target_QI, ~is_target_QI).astype(np.float32)

    def state(self):
        return self.passes

    def load_state(self, state):
        self.loaded.append(state)
        self.passes = state


def _fit(script, passes=0, kind=Scripted, **settings):
    recommender = kind(script)
    config = FitConfig(**({"passes": len(script), "batch_targets": 64} | settings))
    reports = []
    fitted = fit(
        recommender,
        DATA.split,
        DATA.item_ids,
        FitPlan(
            config,
            replace(BATCHES, batch_targets=config.batch_targets),
            exclude_seen=False,
            passes=passes or config.passes,
            walk_passes=0,
            tell=reports.append,
        ),
    )
    return recommender, fitted, reports


def test_a_fit_ends_in_the_state_of_its_best_pass():
    recommender, fitted, reports = _fit([0.1, 0.3, 0.2])
    assert fitted.validation == pytest.approx([0.1, 0.3, 0.2])
    assert fitted.best_pass == 2
    assert (recommender.loaded, recommender.passes) == ([2], 2)
    assert [r.best for r in reports] == pytest.approx([0.1, 0.3, 0.3])
    assert [(r.number, r.passes, r.loss) for r in reports] == [(n, 3, 1.0) for n in (1, 2, 3)]


def test_steps_that_were_refused_are_counted():
    class Refusing(Scripted):
        def train_on(self, batch, *, decay):
            refused = {"refused": 1.0} if len(self.rows) % 3 == 0 else {}
            return super().train_on(batch, decay=decay) | refused

    recommender, fitted, _ = _fit([0.5, 0.6], kind=Refusing)
    assert fitted.refused_steps == -(-len(recommender.rows) // 3) > 1


def test_the_first_of_two_equal_passes_is_the_best_and_the_last_one_needs_no_way_back():
    recommender, fitted, _ = _fit([0.3, 0.3, 0.1])
    assert (fitted.best_pass, recommender.passes) == (1, 1)
    recommender, fitted, _ = _fit([0.1, 0.2, 0.3])
    assert (fitted.best_pass, recommender.passes, recommender.loaded) == (3, 3, [])


def test_patience_stops_after_so_many_validations_without_a_better_one():
    recommender, fitted, _ = _fit([0.2, 0.1, 0.3, 0.1, 0.2, 0.5], patience=2)
    assert fitted.validation == pytest.approx([0.2, 0.1, 0.3, 0.1, 0.2])
    assert recommender.loaded == [3]
    assert len(_fit([0.2, 0.1, 0.1, 0.1, 0.1, 0.5], patience=0)[1].validation) == 6


def test_only_every_second_pass_is_validated_when_asked_and_the_last_one_always():
    recommender, fitted, reports = _fit([0.9, 0.1, 0.9, 0.3, 0.2], validate_every=2)
    assert fitted.validation == pytest.approx([0.1, 0.3, 0.2])
    assert [r.number for r in reports] == [2, 4, 5]
    assert (fitted.best_pass, recommender.passes) == (4, 4)


def test_a_cosine_falls_from_1_to_0_over_all_steps_of_all_passes_and_a_constant_stays_1():
    recommender, fitted, _ = _fit([0.1, 0.2, 0.3], schedule="cosine")
    steps = len(recommender.decays)
    assert steps >= 12
    np.testing.assert_allclose(recommender.decays, (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2)
    assert recommender.decays[0] == 1.0
    assert 0 < recommender.decays[-1] < 0.02
    assert fitted.examples == 3 * (DATA.split.train_U - 1).clip(0).sum()
    assert {*_fit([0.1, 0.2], schedule="constant")[0].decays} == {1.0}


def test_a_given_number_of_passes_stands_above_the_configured_one_and_ends_its_cosine():
    recommender, fitted, reports = _fit([0.1, 0.2, 0.3, 0.4], passes=2)
    assert len(fitted.validation) == recommender.passes == 2
    assert [r.passes for r in reports] == [2, 2]
    assert recommender.decays[-1] < 0.1


def test_a_state_that_is_loaded_after_more_training_gives_the_same_vectors_to_the_bit(one_thread):
    torch.manual_seed(0)
    towers = CLEPIDTN(CONFIG.model, 1)
    recommender = TrainedRecommender(towers, DATA.catalogue, CONFIG, FitConfig(), torch.device("cpu"))
    reader = TrainingPasses(DATA.split, BATCHES)
    [queries] = query_batches(DATA.interactions, DATA.split.test, 5, 1000)

    def vectors():
        return recommender.encode_users(queries), recommender.encode_items(DATA.item_ids)

    batches = list(reader.batches(1))
    for batch in batches[:-2]:
        recommender.train_on(batch)
    state, before, rows = recommender.state(), vectors(), len(recommender.table)
    for batch in [*batches[-2:], *batches]:
        recommender.train_on(batch)
    for then, now in zip(before, vectors(), strict=True):
        assert np.abs(now - then).max() > 1e-3
    assert len(recommender.table) > rows  # what came later was encoded by its first value then
    recommender.load_state(state)
    for then, now in zip(before, vectors(), strict=True):
        assert np.array_equal(now, then)
    recommender.train_on(batches[0])
    recommender.load_state(state)  # what was kept is a copy
    assert all(map(np.array_equal, vectors(), before))
