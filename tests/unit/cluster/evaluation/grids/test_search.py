"""A search gives every system the same number of trials, draws none twice, and never sees the test."""

import pytest

from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.grids.cell_files import CellFiles
from cluster.evaluation.grids.grid import InProcess, run_grid
from cluster.evaluation.grids.search import SPACES, best_settings, trial_cells
from cluster.evaluation.systems.overrides import with_settings
from cluster.evaluation.systems.systems import SYSTEMS
from tests.support.data_tables import random_tables

SEARCHED = sorted(SPACES)


def _trials(name, count=12, **changes):
    arguments = {"start": {}, "fixed": ()} | changes
    return trial_cells(SYSTEMS[name], OfflineConfig(), "data", count, **arguments)


@pytest.mark.parametrize("name", SEARCHED)
def test_every_searched_system_gets_as_many_different_trials_the_current_settings_first(name):
    trials = _trials(name)
    assert len(trials) == 12
    assert len({cell.key for cell, _ in trials}) == 12
    assert trials[0][1] == {}
    assert [cell.trial for cell, _ in trials] == list(range(1, 13))
    assert [settings for _, settings in _trials(name)] == [settings for _, settings in trials]


@pytest.mark.parametrize("name", SEARCHED)
def test_every_choice_of_a_space_is_a_setting_that_the_system_reads_and_does_not_force(name):
    system = SYSTEMS[name]
    for choices in SPACES[name]:
        for choice in choices:
            applied = system.settings_of(OfflineConfig(), choice, {})
            for key, value in choice.items():
                assert system.influences(key)
                assert key not in system.forced
                assert key != "model.dim"
                section, _, field = key.partition(".")
                assert getattr(getattr(applied, section), field) == value


def test_a_longer_search_begins_with_the_trials_of_a_shorter_one():
    assert [c.key for c, _ in _trials("dssm", 5)] == [c.key for c, _ in _trials("dssm", 9)][:5]


def test_a_system_with_nothing_to_search_has_one_trial():
    assert len(_trials("popularity")) == 1


def test_a_small_space_is_searched_whole():
    fixed = [key for choices in SPACES["wals"][1:] for choice in choices for key in choice]
    found = [settings for _, settings in _trials("wals", 50, fixed=fixed)]
    # The current number of factors is one of the choices, and not tried twice.
    assert found[0] == {}
    assert {settings["wals.factors"] for settings in found[1:]} == {32, 64}


def test_fixed_settings_and_what_is_drawn_with_them_stay():
    for cell, settings in _trials("dssm", fixed=["fit.learning_rate"]):
        assert not {"fit.learning_rate", "fit.row_learning_rate"} & set(settings)
        assert cell.config.fit == OfflineConfig().fit


def test_a_search_starts_from_what_was_tuned_before():
    trials = _trials("dssm", start={"model.dropout": 0.25, "model.init_std": 0.1})
    assert trials[0][1] == {"model.dropout": 0.25, "model.init_std": 0.1}
    assert all(settings["model.init_std"] == 0.1 for _, settings in trials)
    assert len({settings["model.dropout"] for _, settings in trials}) > 1


def test_trials_are_run_on_validation_alone_and_the_best_one_wins(tmp_path):
    tables = random_tables()
    config = with_settings(OfflineConfig(), {"wals.iterations": 2, "device": "cpu"})
    trials = trial_cells(SYSTEMS["wals"], config, tables.fingerprint(), 4, start={})
    outcome = run_grid(
        [cell for cell, _ in trials], InProcess(tables), CellFiles(tmp_path), lambda event: None
    )
    assert outcome.errors == {}
    for cell, _ in trials:
        result = outcome.of(cell)
        assert (result.figures, result.ranks) == ({}, None)
        assert len(result.fitted.validation) == 1
    assert not list(tmp_path.glob("*.npz"))
    scores = [outcome.of(cell).validation for cell, _ in trials]
    assert best_settings(trials, outcome) == trials[scores.index(max(scores))][1]


def test_failed_trials_are_passed_over():
    trials = _trials("wals", 3)
    from cluster.evaluation.grids.grid import GridOutcome

    assert best_settings(trials, GridOutcome()) is None
