"""Sampled events as the live version answers them: agreement with exact validation, staleness, items seen before."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.collectives import Collectives
from cluster.config import FreshetConfig, ProgressiveConfig
from cluster.queries.version_store import version_store
from cluster.training.served.answers import Answer, LiveAnswers
from cluster.training.served.recent_models import RecentModels
from cluster.training.state.run import TrainingRun
from model.config import ModelConfig
from retrieval.versions.store import VersionStore
from streaming.batches.batcher import Batcher
from streaming.config import StreamConfig
from streaming.events.schema import DECODED_SCHEMA, empty_batch
from tests.support.deltas import changes_of, commit_delta
from tests.support.index_versions import publish_version
from tests.support.memory_source import MemorySource, NoDeadLetters
from tests.support.training_batches import Run, random_runs, to_batch

pytestmark = pytest.mark.usefixtures("one_thread")

KNOWN = 40
CONFIG = FreshetConfig(
    stream=StreamConfig(history_length=6, user_attributes=[]),
    model=ModelConfig(
        dim=8, heads=2, layers=1, history_length=6, augmented_dim=4, init_std=0.5, uniform_negatives=5
    ),
    progressive=ProgressiveConfig(sample_fraction=1.0, top_k=3, baselines=False),
    device="cpu",
)


@pytest.fixture(scope="module")
def run():
    made = TrainingRun.create(CONFIG, [0], Collectives(), torch.device("cpu"))
    made.catalogue.add_items(np.arange(1, KNOWN + 1))
    source = MemorySource({0: empty_batch(DECODED_SCHEMA)}, [0])
    made._opened = (source, Batcher(CONFIG.stream, source, made.users, made.catalogue, NoDeadLetters()), None)
    return made


@pytest.fixture(scope="module")
def answers(run, tmp_path_factory):
    config = publish_version(run, tmp_path_factory.mktemp("storage"))
    return LiveAnswers(RecentModels(version_store(config), config.stream), config.progressive.top_k)


def test_the_model_in_training_and_its_own_version_searched_exhaustively_agree_on_every_event(run, answers):
    rows = random_runs(np.random.default_rng(3), rows=30, items=KNOWN)
    rows += [Run(50, [1, 2], [777, 3]), Run(51, [4, 5], [4])]  # an item nobody had heard of; a repeated one
    for row in [*([row] for row in rows), rows]:
        batch = to_batch(row)
        exact = run.progressive.rank(batch, run.train_step.prepare(batch, 0))
        answer = answers.answer(batch, step=0)
        assert [answer.sample, answer.hits] == exact[:2].tolist()
        assert answer.version == "v00000001"
    assert 0 < answer.hits < answer.sample


def test_an_item_that_the_version_does_not_hold_is_a_miss_and_one_had_before_is_not_scored(answers):
    stale = [Run(1, [2], [KNOWN + 1 + n]) for n in range(5)]
    assert answers.answer(to_batch(stale), 0) == Answer("v00000001", sample=5, hits=0)
    repeated = [Run(1, [2, 3], [2]), Run(1, [2], [5], seen=[5]), Run(1, [], [7, 7])]
    assert answers.answer(to_batch(repeated), 0).sample == 1  # the first of the two sevens


def test_items_that_the_user_had_before_take_no_place_among_the_results(answers):
    every = list(range(1, KNOWN + 1))
    for target in (3, 17, 40):
        others = [item for item in every if item != target]
        left = [Run(1, [2], [target], seen=[i for i in others if i not in (8, 9)])]
        assert answers.answer(to_batch(left), 0).hits == 1  # of three items left it is one of the best three


def test_a_version_that_was_trained_on_the_events_does_not_answer_them(run, tmp_path):
    trained = replace(run, step=5)
    config = publish_version(trained, tmp_path)
    late = LiveAnswers(RecentModels(version_store(config), config.stream), 3)
    batch = to_batch([Run(1, [2], [3]), Run(2, [2], [4, 5])])
    assert late.answer(batch, step=4) == Answer(unanswered=3)
    assert late.answer(batch, step=5).sample == 3


def test_without_a_version_nothing_is_answered_and_a_damaged_one_is_named(run, tmp_path):
    nobody = LiveAnswers(RecentModels(VersionStore(tmp_path / "none"), CONFIG.stream), 3)
    batch = to_batch([Run(1, [2], [3])])
    assert nobody.answer(batch, 0) == Answer(unanswered=1)
    config = publish_version(run, tmp_path)
    (tmp_path / "index" / "v00000001" / "model.json").write_text("{}")
    answer = LiveAnswers(RecentModels(version_store(config), config.stream), 3).answer(batch, 0)
    assert (answer.sample, answer.unanswered) == (0, 1)
    assert "v00000001" in answer.problem


def test_a_delta_that_was_trained_on_the_events_leaves_them_to_the_model_before_it(run, tmp_path):
    config = publish_version(replace(run, step=5), tmp_path)
    store = version_store(config)
    models = RecentModels(store, config.stream)
    answers, batch = LiveAnswers(models, 3), to_batch([Run(1, [2], [3]), Run(2, [2], [4, 5])])
    commit_delta(store, store.current(), changes_of(8), step=7)
    commit_delta(store, store.current(), changes_of(8), step=9)
    assert answers.answer(batch, step=4) == Answer(unanswered=3)
    for step, delta in ((5, 0), (6, 0), (7, 1), (8, 1), (9, 2), (100, 2)):
        assert models.before(step).delta == delta
        assert answers.answer(batch, step).sample == 3
    publish_version(replace(run, step=8), tmp_path)
    answers.answer(batch, step=8)
    assert models.before(8).version.name == "v00000002"
    assert models.before(7) is None


def test_only_the_last_models_are_kept(run, tmp_path):
    config = publish_version(replace(run, step=5), tmp_path)
    store = version_store(config)
    models = RecentModels(store, config.stream, kept=3)
    for step in range(6, 12):
        commit_delta(store, store.current(), changes_of(8), step=step)
    models.refresh()
    assert models.before(8) is None
    assert [models.before(step).steps for step in (9, 10, 11)] == [9, 10, 11]
