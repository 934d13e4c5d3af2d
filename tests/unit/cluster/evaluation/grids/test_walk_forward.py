"""A walk-forward predicts every stage before it trains on it, and trains on everything once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.grids.cell import Cell, run_cell
from cluster.evaluation.grids.walk_forward import walk
from cluster.evaluation.protocol.batches import PassSettings
from cluster.evaluation.protocol.data import prepare
from cluster.evaluation.protocol.protocols import moments
from cluster.evaluation.systems.fitting import FitPlan, Fitted, fit
from cluster.evaluation.systems.overrides import with_settings
from cluster.evaluation.systems.systems import SYSTEMS, create
from tests.support.data_tables import random_tables, tables_of

DAY = 86_400_000
EVENTS = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(0, 30 * DAY)), min_size=12, max_size=80
)
WALKING = {
    "protocol.kind": "temporal",
    "protocol.validation_from": "0.5",
    "protocol.test_from": "0.75",
    "protocol.walk_forward_days": 2,
    "protocol.targets": "day",
    "protocol.exclude_seen": False,
    "fit.first_events": True,
    "fit.batch_targets": 16,
    "device": "cpu",
}


class Recording:
    """Notes which events it was trained on before which queries."""

    def __init__(self):
        self.trained, self.ended, self.asked = [], 0, []

    def train_on(self, batch, *, decay=1.0):
        for row in batch.to_pylist():
            self.trained += [
                (row["user_id"], row["events_before"] + k, time)
                for k, time in enumerate(row["times_ms"][row["context_length"] :])
            ]
        self.decay = decay
        return {}

    def end_pass(self):
        self.ended += 1

    def encode_users(self, batch):
        histories = [(row["times_ms"][: row["context_length"]]) for row in batch.to_pylist()]
        newest = max((time for history in histories for time in history), default=-1)
        self.asked.append((len(self.trained), newest))
        return np.zeros((batch.num_rows, 1), np.float32)

    def encode_items(self, item_ids):
        return np.zeros((len(item_ids), 1), np.float32)

    def scores(self, users, items):
        return users @ items.T

    def state(self):
        return None

    def load_state(self, state):
        pass


def _prepared(events):
    return prepare(tables_of(events), with_settings(OfflineConfig(), WALKING))


def _walked(data, passes=1, **more):
    config = with_settings(OfflineConfig(), WALKING)
    recorder = Recording()
    batches = replace(PassSettings.of(config), window=4, mask_all=True, seed=1)
    plan = FitPlan(config.fit, batches, exclude_seen=True, passes=1, walk_passes=passes)
    fitted = fit(recorder, data.split, data.item_ids, plan)
    recorder.fitting, recorder.asked = len(recorder.trained), []  # type: ignore[attr-defined]
    ranking = walk(recorder, data.split, data.item_ids, plan, fitted, **more)
    return recorder, fitted, ranking


@settings(deadline=None, max_examples=60)
@given(EVENTS)
def test_no_stage_is_trained_on_before_it_is_predicted_and_all_are_trained_on_once(events):
    try:
        data = _prepared(events)
    except ValueError:
        return
    recorder, fitted, ranking = _walked(data)
    # Whatever was asked, nothing that had been trained on, and no history, is as late as the query's stage.
    starts = iter([_start(data, stage) for stage in data.split.stages if len(stage.queries)])
    for (trained, newest), start_ms in zip(recorder.asked, starts, strict=True):
        assert newest < start_ms
        assert all(time < start_ms for _, _, time in recorder.trained[:trained])
    last_ms = _start(data, data.split.stages[-1])
    wanted = sorted(
        (int(user), place)
        for u, user in enumerate(data.interactions.user_U)
        for place in range(int(data.split.stages[-1].before_U[u]))
    )
    assert sorted((user, place) for user, place, _ in recorder.trained) == wanted
    assert all(time < last_ms for _, _, time in recorder.trained)
    assert fitted.examples == len(wanted)
    assert len(ranking.rank_G) == len(ranking.query_G) == len(data.split.test.target_G)


def _start(data, stage):
    validation_ms, test_ms, end_ms = moments(
        data.interactions.time_T, with_settings(OfflineConfig(), WALKING).protocol
    )
    firsts = [*range(validation_ms, test_ms, 2 * DAY), *range(test_ms, end_ms, 2 * DAY)]
    return firsts[[s is stage for s in data.split.stages].index(True)]


def _steady(days=20, users=4):
    """One event of every user a day."""
    return [(user, 1 + (user + day) % 6, day * DAY + user) for day in range(days) for user in range(1, users)]


def test_a_user_is_asked_for_in_every_stage_and_targets_are_those_of_the_stage():
    data = _prepared(_steady())
    tested = [stage for stage in data.split.stages if stage.tested]
    # Test from day 15 on: five days in stages of two.
    assert [len(stage.queries) for stage in tested] == [3, 3, 3]
    assert data.split.test.cut_Q.tolist() == [15, 15, 15, 17, 17, 17, 19, 19, 19]
    assert data.split.test.target_G.tolist() == [1 + (u + d) % 6 for d in (15, 17, 19) for u in (1, 2, 3)]


def test_at_once_the_test_is_predicted_as_of_its_start_by_what_walked_up_to_it():
    tables, settings_ = tables_of(_steady()), WALKING | {"protocol.test_at_once": True}
    config = with_settings(OfflineConfig(), settings_)
    data, walking = prepare(tables, config), _prepared(_steady())
    assert [stage.tested for stage in data.split.stages] == [False, False, False, True]
    assert [stage.before_U.tolist() for stage in data.split.stages[:3]] == [
        stage.before_U.tolist() for stage in walking.split.stages[:3]
    ]
    # Three users, each once, on the first day of the test; trained up to it and no further.
    assert data.split.test.cut_Q.tolist() == [15, 15, 15]
    assert data.split.test.target_G.tolist() == [1 + (u + 15) % 6 for u in (1, 2, 3)]
    recorder = _walked(data)[0]
    assert max(time for *_, time in recorder.trained) // DAY == 14
    with pytest.raises(ValueError, match=r"test_at_once needs protocol\.walk_forward_days"):
        with_settings(OfflineConfig(), settings_ | {"protocol.walk_forward_days": 0})


def test_each_stretch_is_read_as_often_as_it_is_told_at_its_own_rate():
    data = _prepared(_steady())
    once, twice = _walked(data)[0], _walked(data, passes=2)[0]
    assert once.fitting == twice.fitting
    assert len(twice.trained) - twice.fitting == 2 * (len(once.trained) - once.fitting) > 0
    assert once.decay == OfflineConfig().fit.walk_rate
    # Once behind the fit, and once behind every stage but the last one.
    assert twice.ended == once.ended == len(data.split.stages)


def test_a_trial_walks_through_the_validation_and_does_not_go_into_the_test():
    data = _prepared(_steady())
    recorder, fitted, ranking = _walked(data, test=False)
    assert len(ranking.rank_G) == len(ranking.query_G) == 0
    assert max(time for *_, time in recorder.trained) < 15 * DAY
    assert 0 <= fitted.walk_validation <= 1
    tables = tables_of(_steady())
    config = SYSTEMS["popularity"].settings_of(with_settings(OfflineConfig(), WALKING), {}, {})
    results = [run_cell(Cell("popularity", 1, config, "x", trial=trial), tables) for trial in (1, 0)]
    assert [result.ranks is None for result in results] == [True, False]
    assert results[0].validation == results[0].fitted.walk_validation == results[1].validation


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_goes_on_from_what_it_knows_and_gives_the_same_again(name):
    system = SYSTEMS[name]
    sizes = {
        "model.dim": 8,
        "model.augmented_dim": 4,
        "model.uniform_negatives": 5,
        "fit.batch_targets": 40,
        "fit.warmup_steps": 2,
        "fit.passes": 2,
        "wals.factors": 4,
        "wals.iterations": 2,
    }
    # 400 events in eight days, from the fourth on two and one of two days.
    tables = random_tables(step_ms=DAY // 24)
    config = system.settings_of(with_settings(OfflineConfig(), WALKING | sizes), {}, {})
    told = []
    ranks = run_cell(Cell(name, 1, config, "x"), tables, told.append).ranks.rank_G.tolist()
    data = prepare(tables, config)
    stages = len(data.split.stages)
    assert stages == 3
    assert [(r.stage, r.stages) for r in told if r.stages] == [(n + 1, stages) for n in range(stages)]
    plan = FitPlan.of(config, trained=system.trained)
    assert (plan.passes, plan.walk_passes) == ((2, config.fit.walk_passes) if system.trained else (1, 1))

    def walked(split, fit_first=True, plan=plan):
        recommender = create(system, config, data.catalogue, data.item_ids, torch.device("cpu"))
        fitted = Fitted()
        if fit_first:
            fitted = fit(recommender, split, data.item_ids, plan)
        ranking = walk(recommender, split, data.item_ids, plan, fitted)
        return ranking.rank_G.tolist()

    assert walked(data.split) == ranks
    # One that learns nothing on its way stands elsewhere, and so does one that knows only what came on its way.
    assert walked(data.split, plan=replace(plan, walk_passes=0)) != ranks
    assert walked(data.split, fit_first=False) != ranks
    if not system.trained:
        # At the last stage it knows what it would, had it read everything before that at once.
        last = data.split.stages[-1]
        at_once = walked(replace(data.split, train_U=last.before_U, stages=(last,)))
        assert ranks[-len(last.queries.target_G) :] == at_once
