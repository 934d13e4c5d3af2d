"""The verb `evaluate`: systems on a data set at rest, each cell once, then the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.command.errors import UsageError
from deploy.command.options import offline_settings
from deploy.command.output import plain, write_json
from deploy.command.sigterm import stop_on_signals
from deploy.evaluate.files import Trials, write_cells, write_results, write_trials, write_tuned
from deploy.evaluate.options import EvaluateOptions, sweep_points
from deploy.evaluate.plot import draw, require_matplotlib
from deploy.evaluate.progress import EvaluationDisplay
from deploy.evaluate.report import EvaluationReport, build_report, print_report
from deploy.evaluate.tuned import read_tuned

if TYPE_CHECKING:
    from cluster.evaluation.config import OfflineConfig
    from cluster.evaluation.grids.cell import Cell
    from cluster.evaluation.grids.grid import GridOutcome, Runner
    from cluster.evaluation.protocol.data import Tables
    from cluster.evaluation.systems.systems import System
    from deploy.command.terminal import Terminal
    from streaming.config import StreamConfig

FAILED_STATUS = 1
Tuned = Mapping[str, Mapping[str, Any]]


def run_evaluation(options: EvaluateOptions, console: Terminal) -> int:
    """Runs missing cells, writes and prints everything; the exit status is 0 if no cell failed.

    Raises:
        ConfigError, UsageError, UnknownSystem, MissingPackage, PlotUnavailable, DatasetError, ProtocolError: raised
            before anything is trained.
    """
    from cluster.evaluation.protocol.data import prepare
    from cluster.evaluation.systems.systems import chosen, require_packages

    systems = chosen(options.models)
    config = offline_settings(options.config, options.overrides, options.preset)
    points = sweep_points(options)
    tuned = read_tuned(options, config)
    if options.seeds < 1:
        raise UsageError(f"--seeds must be at least 1, got {options.seeds}")
    require_matplotlib()
    require_packages(systems)
    tables = load_tables(options.data, console, config.stream)
    prepare(tables, config)  # fail now if the data cannot be split
    evaluation = Evaluation(options, systems, config, points, tables, console)
    with stop_on_signals():
        try:
            return evaluation.run(tuned)
        finally:
            evaluation.runner.close()


def load_tables(name_or_folder: str, console: Terminal, stream: StreamConfig) -> Tables:
    """A data set by name or from its folder."""
    from cluster.evaluation.protocol.data import Tables
    from deploy.datasets.choosing import fetch_dataset

    dataset = fetch_dataset(name_or_folder, console.print, stream)
    return Tables(dataset.name, dataset.interactions, dataset.items, dataset.users)


@dataclass(frozen=True)
class Evaluation:
    """The validated request of one command."""

    options: EvaluateOptions
    systems: Sequence[System]
    config: OfflineConfig
    points: Sequence[Mapping[str, Any]]
    tables: Tables
    console: Terminal

    def run(self, tuned: Tuned) -> int:
        """See run_evaluation."""
        from cluster.evaluation.grids.grid import cells_of

        trials: Trials = {}
        failed: dict[str, str] = {}
        if self.options.trials:
            trials, tuned, failed = self._search(tuned)
        cells = cells_of(
            self.systems,
            range(1, self.options.seeds + 1),
            self.config,
            self.fingerprint,
            points=self.points or ({},),
            tuned=tuned,
        )
        outcome = self._run_cells(cells, "evaluating")
        report = build_report(cells, outcome, self._about(tuned, trials))
        report.errors = failed | report.errors
        self._write(report, cells, outcome)
        print_report(self.console, report)
        return FAILED_STATUS if report.errors else 0

    @property
    def folder(self) -> Path:
        """The folder of cells, tables and plots."""
        return self.options.out or Path("runs/evaluate") / Path(self.options.data).name

    @cached_property
    def fingerprint(self) -> str:
        """Of the data set."""
        return self.tables.fingerprint()

    def _search(self, start: Tuned) -> tuple[Trials, Tuned, dict[str, str]]:
        """Trials, the best settings of each model, and failures."""
        from cluster.evaluation.grids.search import best_settings, trial_cells

        fixed = self.options.overridden | {key for point in self.points for key in point}
        trials = {
            system.name: trial_cells(
                system,
                self.config,
                self.fingerprint,
                self.options.trials,
                start=start.get(system.name, {}),
                fixed=fixed,
            )
            for system in self.systems
        }
        cells = [cell for of_system in trials.values() for cell, _ in of_system]
        outcome = self._run_cells(cells, "searching")
        found = {name: best_settings(of_system, outcome) for name, of_system in trials.items()}
        best = {name: settings or {} for name, settings in found.items()}
        write_trials(self.folder, trials, outcome)
        about = f"Of {self.options.trials} trials a model by validation HR@10 on {self.tables.name}; see trials.csv"
        write_tuned(self.folder / "tuned.yaml", best, about)
        failed = build_report(cells, outcome, {}).errors
        return trials, best, failed

    def _run_cells(self, cells: Sequence[Cell], title: str) -> GridOutcome:
        from cluster.evaluation.grids.cell_files import CellFiles
        from cluster.evaluation.grids.grid import run_grid

        files = CellFiles(self.folder / "cells")
        with EvaluationDisplay(title, cells, self.console) as display:
            try:
                return run_grid(cells, self.runner, files, display.take)
            except (KeyboardInterrupt, SystemExit):
                display.say(f"interrupted with {display.view.done_text}; the same command resumes from here")
                raise

    @cached_property
    def runner(self) -> Runner:
        """Where cells run."""
        if self.options.workers == 0:
            from cluster.evaluation.grids.grid import InProcess

            return InProcess(self.tables)
        from cluster.evaluation.grids.ray_runner import OnRay

        return OnRay(
            self.tables,
            workers=self.options.workers or 0,
            threads=self.config.fit.threads,
            address=self.options.ray_address,
        )

    def _about(self, tuned: Tuned, trials: Trials) -> dict[str, Any]:
        return {
            "models": [system.name for system in self.systems],
            "seeds": list(range(1, self.options.seeds + 1)),
            "protocol": asdict(self.config.protocol),
            "preset": self.options.preset,
            "overrides": self.options.overrides or [],
            "sweeps": self.options.sweeps,
            "tuned": {system.name: dict(tuned.get(system.name, {})) for system in self.systems},
            "trials": {name: len(of_system) for name, of_system in trials.items()},
        }

    def _write(self, report: EvaluationReport, cells: Sequence[Cell], outcome: GridOutcome) -> None:
        """Tables and plots; the report then knows where they are."""
        folder = self.folder
        write_cells(folder / "cells.csv", cells, outcome)
        write_results(folder / "results.csv", report.rows)
        plots = draw(report.rows, f"{self.tables.name}, {report.protocol}", folder)
        report.files = {
            "table": [folder / "results.csv", folder / "cells.csv"],
            "data": [folder / "results.json"],
            "plot": plots,
            "search": [folder / "tuned.yaml", folder / "trials.csv"] if self.options.trials else [],
        }
        result = plain(report.as_json())
        for path in (folder / "results.json", self.options.json_path):
            write_json(path, result)
