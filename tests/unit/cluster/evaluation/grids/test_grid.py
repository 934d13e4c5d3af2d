"""Cells on disk are complete or absent, and a finished one is never run again."""

import json
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.grids import grid
from cluster.evaluation.grids.cell import run_cell
from cluster.evaluation.grids.cell_files import CellFiles
from cluster.evaluation.grids.grid import InProcess, cell_of, cells_of, run_grid
from cluster.evaluation.grids.summary import summarise
from cluster.evaluation.systems.overrides import with_settings
from cluster.evaluation.systems.systems import SYSTEMS, chosen
from tests.support.data_tables import random_tables
from tests.support.full_disk import refusing

TABLES = random_tables()
CONFIG = with_settings(
    OfflineConfig(),
    {
        "model.dim": 8,
        "model.augmented_dim": 4,
        "model.uniform_negatives": 5,
        "fit.batch_targets": 128,
        "fit.passes": 1,
        "device": "cpu",
    },
)


def _cells(names="cl_epidtn,popularity", seeds=(1, 2), **changes):
    return cells_of(chosen(names), seeds, CONFIG, TABLES.fingerprint(), **changes)


@pytest.fixture
def runs(monkeypatch):
    """Keys of the cells that were run."""
    ran = []

    def counted(cell, tables, tell):
        ran.append(cell.key)
        return run_cell(cell, tables, tell)

    monkeypatch.setattr(grid, "run_cell", counted)
    return ran


def _run(folder, cells, events=None):
    tell = events.append if events is not None else (lambda event: None)
    return run_grid(cells, InProcess(TABLES), CellFiles(folder), tell)


def test_finished_cells_are_found_again_and_give_the_same(tmp_path, runs):
    first, events = _run(tmp_path, _cells()), []
    assert len(runs) == 3  # popularity is the same for both seeds
    second = _run(tmp_path, _cells(), events)
    assert len(runs) == 3
    assert [event.kind for event in events] == ["found"] * 3
    for key, result in first.results.items():
        again = second.results[key]
        assert again.figures == pytest.approx(result.figures, nan_ok=True)
        assert again.fitted == result.fitted
        for name, values in vars(result.ranks).items():
            assert np.array_equal(values, getattr(again.ranks, name))


def test_only_what_is_new_is_run(tmp_path, runs):
    _run(tmp_path, _cells(seeds=(1,)))
    runs.clear()
    _run(tmp_path, _cells("cl_epidtn,popularity,markov", seeds=(1, 2)))
    assert sorted(key.rpartition("-")[0] for key in runs) == ["cl_epidtn-seed2", "markov-seed0"]


@pytest.mark.parametrize(
    "what", ["json cut", "json empty", "npz cut", "npz gone", "npz of another", "format"]
)
def test_a_result_that_is_not_whole_is_measured_again(tmp_path, runs, what):
    cells = _cells("popularity,markov", seeds=(1,))
    _run(tmp_path, cells)
    runs.clear()
    record, ranks = tmp_path / f"{cells[0].key}.json", tmp_path / f"{cells[0].key}.npz"
    if what == "json cut":
        record.write_bytes(record.read_bytes()[:-20])
    elif what == "json empty":
        record.write_bytes(b"")
    elif what == "npz cut":
        ranks.write_bytes(ranks.read_bytes()[:-20])
    elif what == "npz gone":
        ranks.unlink()
    elif what == "npz of another":
        ranks.write_bytes((tmp_path / f"{cells[1].key}.npz").read_bytes())
    else:
        record.write_text(json.dumps(json.loads(record.read_text()) | {"format": 0}))
    outcome = _run(tmp_path, cells)
    assert runs == [cells[0].key]
    assert len(outcome.results) == 2
    runs.clear()
    _run(tmp_path, cells)
    assert runs == []


def test_a_process_that_dies_while_it_writes_leaves_no_result(tmp_path, runs, monkeypatch):
    cells = _cells("popularity", seeds=(1,))
    result = run_cell(cells[0], TABLES)

    def dies(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", dies)
        with pytest.raises(KeyboardInterrupt):
            CellFiles(tmp_path).save(result)
    assert CellFiles(tmp_path).load(cells[0]) is None
    CellFiles(tmp_path).save(result)
    assert CellFiles(tmp_path).load(cells[0]) is not None


def test_a_result_of_a_version_without_a_setting_is_found_while_the_setting_has_its_default(tmp_path, runs):
    [cell] = _cells("dssm", seeds=(1,))
    _run(tmp_path, [cell])
    path = tmp_path / f"{cell.key}.json"
    record = json.loads(path.read_text())
    del record["settings"]["model.members"]
    path.write_text(json.dumps(record))
    assert CellFiles(tmp_path).load(cell) is not None
    other = replace(cell, config=with_settings(cell.config, {"model.members": 2}))
    assert other.key != cell.key


def test_a_result_from_before_a_default_changed_is_measured_again(tmp_path, runs):
    [cell] = _cells("dssm", seeds=(1,))
    _run(tmp_path, [cell])
    path = tmp_path / f"{cell.key}.json"
    record = json.loads(path.read_text())
    record["settings"]["model.init_std"] = 0.5  # the default of then, so that it is not in the name
    path.write_text(json.dumps(record))
    runs.clear()
    _run(tmp_path, [cell])
    assert runs == [cell.key]


@pytest.mark.parametrize(
    "settings",
    [
        {"model.dropout": 0.4},
        {"fit.learning_rate": 0.5},
        {"protocol.shuffle_ties": True},
        {"stream.negative_below_value": 3.0},
        {"model.history_length": 9},
    ],
)
def test_a_changed_setting_is_another_cell(settings):
    system = SYSTEMS["cl_epidtn"]
    before = cell_of(system, 1, CONFIG, "data")
    assert cell_of(system, 1, CONFIG, "data", point=settings).key != before.key
    assert cell_of(system, 1, with_settings(CONFIG, settings), "data").key != before.key


def test_data_seed_and_trial_make_another_cell_and_what_has_no_influence_does_not():
    system = SYSTEMS["cl_epidtn"]
    cell = cell_of(system, 1, CONFIG, "data")
    others = [
        cell_of(system, 1, CONFIG, "other data"),
        cell_of(system, 2, CONFIG, "data"),
        cell_of(system, 1, CONFIG, "data", trial=1),
        cell_of(SYSTEMS["epidtn"], 1, CONFIG, "data"),
    ]
    assert len({cell.key, *(other.key for other in others)}) == 5
    elsewhere = replace(CONFIG, storage_path="/elsewhere", train=replace(CONFIG.train, workers=7))
    assert cell_of(system, 1, elsewhere, "data").key == cell.key
    popularity = [
        cell_of(SYSTEMS["popularity"], s, c, "data") for s, c in ((1, CONFIG), (2, OfflineConfig()))
    ]
    assert popularity[0].key == popularity[1].key


def test_a_cell_that_fails_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    def fails_once(cell, tables, tell):
        if cell.system == "markov":
            raise ZeroDivisionError("no\ngood")
        return run_cell(cell, tables, tell)

    monkeypatch.setattr(grid, "run_cell", fails_once)
    cells, events = _cells("markov,popularity", seeds=(1,)), []
    outcome = _run(tmp_path, cells, events)
    assert outcome.errors == {cells[0].key: "ZeroDivisionError: no good"}
    assert list(outcome.results) == [cells[1].key]
    assert [event.kind for event in events] == ["started", "failed", "started", "pass", "finished"]
    assert [row.system for row in summarise(cells, outcome)] == ["popularity"]


def test_an_interruption_keeps_what_was_finished(tmp_path, runs, monkeypatch):
    cells = _cells("popularity,cl_epidtn", seeds=(1,))

    def interrupted(event):
        if event.kind == "pass" and event.cell.system == "cl_epidtn":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_grid(cells, InProcess(TABLES), CellFiles(tmp_path), interrupted)
    assert len(runs) == 2
    runs.clear()
    assert len(_run(tmp_path, cells).results) == 2
    assert runs == [cells[1].key]


def test_seeds_come_one_after_the_other_with_all_systems_and_points():
    cells = _cells(points=[{"model.layers": 1}, {"model.layers": 2}])
    assert [(cell.seed, cell.point["model.layers"], cell.system) for cell in cells[:5]] == [
        (1, 1, "cl_epidtn"),
        (1, 1, "popularity"),
        (1, 2, "cl_epidtn"),
        (1, 2, "popularity"),
        (2, 1, "cl_epidtn"),
    ]
    assert cells[0].config.model.layers == 1
    assert cells[0].config.seed == 1


def test_a_summary_has_means_over_seeds_and_the_reference_against_each_other_system(tmp_path):
    cells = _cells("popularity,cl_epidtn", points=[{"model.layers": 1}, {"model.layers": 2}])
    outcome = _run(tmp_path, cells)
    rows = summarise(cells, outcome)
    assert [(row.system, row.point["model.layers"]) for row in rows] == [
        ("popularity", 1),
        ("cl_epidtn", 1),
        ("popularity", 2),
        ("cl_epidtn", 2),
    ]
    ours, other = rows[1], rows[0]
    values = [result.figures["hr@10"] for result in ours.results]
    assert (ours.seeds, other.seeds) == (2, 2)
    assert ours.mean("hr@10") == pytest.approx(np.mean(values))
    assert ours.std("hr@10") == pytest.approx(abs(values[0] - values[1]) / np.sqrt(2))
    assert other.std("hr@10") == 0.0
    assert ours.comparisons == {}
    assert set(other.comparisons) == {"hr@10", "ndcg@10", "tail_hr@10", "low_activity_hr@10"}
    for metric, found in other.comparisons.items():
        assert found.difference == pytest.approx(ours.mean(metric) - other.mean(metric))
    assert ours.outdated == 0


def test_results_of_other_code_are_counted(tmp_path):
    cells = _cells("popularity", seeds=(1,))
    outcome = _run(tmp_path, cells)
    outcome.results = {key: replace(result, code="old") for key, result in outcome.results.items()}
    assert summarise(cells, outcome)[0].outdated == 1


def test_a_disk_that_is_full_costs_no_result_and_with_room_again_all_of_them_are_written(
    tmp_path, runs, caplog
):
    cells, disk = _cells("popularity,markov,cooccurrence", seeds=(1,)), ExitStack()
    disk.enter_context(refusing("replace", below=tmp_path))

    def make_room_after_two(event):
        if event.kind == "finished" and len(runs) == 2:
            disk.close()

    outcome = run_grid(cells, InProcess(TABLES), CellFiles(tmp_path), make_room_after_two)
    assert len(outcome.results) == 3
    assert outcome.errors == {}
    assert caplog.text.count("the run continues and will retry") == caplog.text.count("it works again") == 1
    assert [CellFiles(tmp_path).load(cell) is not None for cell in cells] == [True] * 3
