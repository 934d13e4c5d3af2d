"""All cells of an evaluation: missing ones are run, in this process or on Ray; none is run twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.grids.cell import Cell, CellResult, run_cell
from cluster.evaluation.grids.cell_files import CellFiles
from cluster.evaluation.protocol.data import Tables
from cluster.evaluation.systems.fitting import PassReport
from cluster.evaluation.systems.overrides import with_settings
from cluster.evaluation.systems.systems import System
from cluster.storage_trouble import StorageTrouble


@dataclass(frozen=True)
class CellEvent:
    """Something happened to a cell."""

    cell: Cell
    kind: Literal["found", "started", "pass", "finished", "failed"]
    report: PassReport | None = None
    result: CellResult | None = None
    error: str = ""


Tell = Callable[[CellEvent], None]


@dataclass
class GridOutcome:
    """Results by cell key, and errors."""

    results: dict[str, CellResult] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def of(self, cell: Cell) -> CellResult | None:
        """The cell's result, if it has one."""
        return self.results.get(cell.key)


class Runner(Protocol):
    """Runs cells and reports the start, the passes, and the end or failure of each."""

    def run(self, cells: Sequence[Cell], tell: Tell) -> None:
        """Returns when every cell has finished or failed."""
        ...

    def close(self) -> None:
        """Release resources that were started to run cells."""
        ...


@dataclass(frozen=True)
class InProcess:
    """Runs one cell after the other in this process."""

    tables: Tables

    def run(self, cells: Sequence[Cell], tell: Tell) -> None:
        """See Runner."""
        for cell in cells:
            tell(CellEvent(cell, "started"))
            try:
                result = run_cell(cell, self.tables, partial(_tell_pass, tell, cell))
            except Exception as error:
                tell(CellEvent(cell, "failed", error=failure(error)))
            else:
                tell(CellEvent(cell, "finished", result=result))

    def close(self) -> None:
        """See Runner: nothing was started."""


def _tell_pass(tell: Tell, cell: Cell, report: PassReport) -> None:
    tell(CellEvent(cell, "pass", report=report))


def run_grid(cells: Iterable[Cell], runner: Runner, files: CellFiles, tell: Tell) -> GridOutcome:
    """Reads results that exist, runs the other cells, and writes each result when it is ready.

    Args:
        cells: cells with equal keys are one cell.
        runner: runs them.
        files: finished cells.
        tell: called with every event; for a finished cell, after its result was written or could not be.
    """
    outcome, missing, unsaved = GridOutcome(), [], _Unsaved(files)
    first_of: dict[str, Cell] = {}
    for cell in cells:
        first_of.setdefault(cell.key, cell)
    for key, cell in first_of.items():
        result = files.load(cell)
        if result is None:
            missing.append(cell)
        else:
            outcome.results[key] = result
            tell(CellEvent(cell, "found", result=result))

    def take(event: CellEvent) -> None:
        if event.kind == "finished" and event.result is not None:
            unsaved.add(event.result)
            outcome.results[event.cell.key] = event.result
        elif event.kind == "failed":
            outcome.errors[event.cell.key] = event.error
        tell(event)

    if missing:
        runner.run(missing, take)
        unsaved.save()
    return outcome


class _Unsaved:
    """Results that could not be written, for example to a full disk; they are used, and written with the next ones."""

    def __init__(self, files: CellFiles) -> None:
        self._files, self._results = files, list[CellResult]()
        self._trouble = StorageTrouble(f"results cannot be written to {files.folder}")

    def add(self, result: CellResult) -> None:
        self._results.append(result)
        self.save()

    def save(self) -> None:
        while self._results:
            try:
                self._files.save(self._results[0])
            except OSError as error:
                self._trouble.failed(error)
                return
            self._trouble.works()
            del self._results[0]


def cells_of(
    systems: Sequence[System],
    seeds: Sequence[int],
    config: OfflineConfig,
    fingerprint: str,
    *,
    points: Sequence[Mapping[str, Any]] = ({},),
    tuned: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Cell]:
    """Every system with every seed at every point of the sweep; all systems of a seed come before the next seed."""
    return [
        cell_of(system, seed, config, fingerprint, point=point, tuned=(tuned or {}).get(system.name, {}))
        for seed in seeds
        for point in points
        for system in systems
    ]


def cell_of(
    system: System,
    seed: int,
    config: OfflineConfig,
    fingerprint: str,
    *,
    point: Mapping[str, Any] | None = None,
    tuned: Mapping[str, Any] | None = None,
    trial: int = 0,
) -> Cell:
    """One cell with all its settings applied."""
    applied = with_settings(system.settings_of(config, tuned or {}, point or {}), {"seed": seed})
    return Cell(system.name, seed, applied, fingerprint, dict(point or {}), trial)


def failure(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    known = isinstance(error, ValueError)
    return text if known and text else f"{type(error).__name__}: {text}"
