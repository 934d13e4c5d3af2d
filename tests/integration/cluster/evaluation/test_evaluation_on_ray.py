"""Cells as Ray tasks: the same results as in this process, and a worker that dies costs only its own cell."""

import os
import signal

import pytest

from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.grids import cell as cell_module
from cluster.evaluation.grids import ray_runner
from cluster.evaluation.grids.cell_files import CellFiles
from cluster.evaluation.grids.grid import InProcess, cells_of, run_grid
from cluster.evaluation.grids.ray_runner import OnRay
from cluster.evaluation.systems.overrides import with_settings
from cluster.evaluation.systems.systems import chosen
from tests.support.data_tables import random_tables

CONFIG = with_settings(
    OfflineConfig(),
    {
        "model.dim": 8,
        "model.augmented_dim": 4,
        "model.uniform_negatives": 5,
        "fit.batch_targets": 128,
        "fit.passes": 2,
        "device": "cpu",
    },
)
TABLES = random_tables()


@pytest.fixture
def on_ray():
    runner = OnRay(TABLES, workers=2, threads=1)
    yield runner
    runner.close()


@pytest.fixture
def sigterms():
    """How often this process got SIGTERM, which it survives."""
    found = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: found.append(number))
    yield found
    signal.signal(signal.SIGTERM, before)


def _run_or_die(cell, tables, board):
    """What a task does, but for one cell, which takes its process down, and one that raises."""
    if cell.system == "markov":
        os.kill(os.getpid(), signal.SIGKILL)
    if cell.system == "cooccurrence":
        raise ValueError("no\ncounts today")
    board.say.remote(cell.key, None)
    return cell_module.run_cell(cell, tables, lambda report: board.say.remote(cell.key, report))


def test_cells_on_ray_give_what_they_give_here_and_a_dead_worker_costs_only_its_cell(
    tmp_path, sigterms, on_ray, monkeypatch
):
    cells = cells_of(chosen("popularity,dssm"), (1, 2), CONFIG, TABLES.fingerprint())
    here = run_grid(cells, InProcess(TABLES), CellFiles(tmp_path / "here"), lambda event: None)
    events = []
    there = run_grid(cells, on_ray, CellFiles(tmp_path / "there"), events.append)
    assert there.errors == {}
    assert {key: r.ranks.rank_G.tolist() for key, r in there.results.items()} == {
        key: r.ranks.rank_G.tolist() for key, r in here.results.items()
    }
    kinds = [event.kind for event in events]
    assert kinds.count("finished") == 3
    assert set(kinds) <= {"started", "pass", "finished"}
    assert all(CellFiles(tmp_path / "there").load(cell) for cell in cells)

    os.kill(os.getpid(), signal.SIGTERM)  # Ray's own handler would print a stack and abort
    assert sigterms == [signal.SIGTERM]

    monkeypatch.setattr(ray_runner, "_run_on_ray", _run_or_die)
    doomed = cells_of(chosen("markov,cooccurrence,epidtn"), (1,), CONFIG, TABLES.fingerprint())
    outcome = run_grid(doomed, on_ray, CellFiles(tmp_path / "there"), events.append)
    assert [outcome.results[doomed[2].key].system] == ["epidtn"]
    assert outcome.errors[doomed[1].key] == "no counts today"
    assert "WorkerCrashedError" in outcome.errors[doomed[0].key]
    assert "\n" not in outcome.errors[doomed[0].key]
