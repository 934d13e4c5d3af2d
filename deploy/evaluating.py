"""The verb `evaluate`: systems on a data set at rest, each cell once, then the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.errors import UsageError
from deploy.evaluation_options import EvaluateOptions, read_tuned, sweep_points
from deploy.evaluation_progress import EvaluationDisplay
from deploy.options import settings
from deploy.output import plain, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.config import FreshetConfig
    from cluster.evaluation.cell import Cell
    from cluster.evaluation.cell_files import CellFiles
    from cluster.evaluation.data import Tables
    from cluster.evaluation.grid import GridOutcome, Runner
    from cluster.evaluation.systems import System

FAILED_STATUS = 1


def run_evaluation(options: EvaluateOptions, json_path: Path | None, console: Console) -> int:
    """Runs what is missing, writes and prints everything; the exit status is 0 if no cell failed.

    Raises:
        ConfigError, UsageError, UnknownSystem, DatasetError, ProtocolError: found before anything is trained.
    """
    from cluster.evaluation.systems import chosen, require_packages

    systems = chosen(options.models)
    config = settings(options.config, options.overrides, options.preset)
    points = sweep_points(options)
    tuned = read_tuned(options)
    if options.seeds < 1:
        raise UsageError(f"--seeds must be at least 1, got {options.seeds}")
    require_packages(systems)
    tables = load_tables(options.data, console)
    return Evaluation(options, systems, config, points, tuned, tables, console).run(json_path)


def load_tables(name_or_folder: str, console: Console) -> Tables:
    """A data set by name or from its folder."""
    from cluster.evaluation.data import Tables
    from deploy.replaying import fetch_dataset

    dataset = fetch_dataset(name_or_folder, console.print)
    return Tables(dataset.name, dataset.interactions, dataset.items, dataset.users)


@dataclass(frozen=True)
class Evaluation:
    """Everything that one command asks for, checked."""

    options: EvaluateOptions
    systems: Sequence[System]
    config: FreshetConfig
    points: Sequence[Mapping[str, Any]]
    tuned: Mapping[str, Mapping[str, Any]]
    tables: Tables
    console: Console

    def run(self, json_path: Path | None) -> int:
        """See run_evaluation."""
        from cluster.evaluation.cell_files import CellFiles
        from cluster.evaluation.data import prepare
        from cluster.evaluation.grid import cells_of

        prepare(self.tables, self.config)  # what cannot be split is told before anything starts
        fingerprint = self.tables.fingerprint()
        files = CellFiles(self.folder / "cells")
        cells = cells_of(
            self.systems,
            range(1, self.options.seeds + 1),
            self.config,
            fingerprint,
            points=self.points or ({},),
            tuned=self.tuned,
        )
        outcome = self._run_cells(cells, files, "evaluating")
        return self._tell(cells, outcome, json_path)

    @property
    def folder(self) -> Path:
        """Where cells, tables and plots are."""
        return self.options.out or Path("runs/evaluate") / Path(self.options.data).name

    def _run_cells(self, cells: Sequence[Cell], files: CellFiles, title: str) -> GridOutcome:
        from cluster.evaluation.grid import run_grid

        with EvaluationDisplay(title, cells, self.console) as display:
            return run_grid(cells, self._runner(), files, display.take)

    def _runner(self) -> Runner:
        if self.options.workers == 0:
            from cluster.evaluation.grid import InProcess

            return InProcess(self.tables)
        from cluster.evaluation.ray_runner import OnRay

        threads, address = self.config.fit.threads, self.options.ray_address
        return OnRay(self.tables, self.options.workers or 0, threads, address)

    def _tell(self, cells: Sequence[Cell], outcome: GridOutcome, json_path: Path | None) -> int:
        from deploy.evaluation_report import build_report, print_report

        report = build_report(cells, outcome, self._about())
        result = plain(report.as_json())
        for path in (self.folder / "results.json", json_path):
            write_json(path, result)
        print_report(self.console, report)
        return FAILED_STATUS if outcome.errors else 0

    def _about(self) -> dict[str, Any]:
        return {
            "models": [system.name for system in self.systems],
            "seeds": list(range(1, self.options.seeds + 1)),
            "protocol": asdict(self.config.protocol),
            "preset": self.options.preset,
            "overrides": self.options.overrides,
            "tuned": self.tuned,
            "sweeps": self.options.sweeps,
        }
