"""The progress of an evaluation: live lines on a terminal, sentences in a log or a pipe."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Group
from rich.live import Live
from rich.table import Table

from deploy.command.terminal import Terminal, line
from deploy.command.times import duration
from deploy.screen.screen import rate

if TYPE_CHECKING:
    from cluster.evaluation.grids.cell import Cell
    from cluster.evaluation.grids.grid import CellEvent
    from cluster.evaluation.systems.fitting import PassReport


@dataclass
class _Running:
    """A cell at work."""

    cell: Cell
    started: float
    report: PassReport | None = None

    @property
    def share(self) -> float:
        return self.report.number / self.report.passes if self.report else 0.0


@dataclass
class EvaluationView:
    """What is shown; times are monotonic seconds."""

    title: str
    cells: dict[str, Cell]
    found: int = 0
    finished: int = 0
    failed: int = 0
    running: dict[str, _Running] = field(default_factory=dict)
    passes_done: int = 0
    passes_left: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> int:
        """Number of cells that are finished or failed."""
        return self.found + self.finished + self.failed

    @property
    def done_text(self) -> str:
        """`3 of 8 cells`."""
        return f"{self.done} of {len(self.cells)} cells"

    def eta_s(self, now: float) -> float | None:
        """Estimated remaining seconds from the mean time of a pass so far; None before the first."""
        under_way = sum(r.report.number for r in self.running.values() if r.report)
        if self.passes_done + under_way == 0:
            return None
        return (now - self.started) / (self.passes_done + under_way) * max(0, self.passes_left - under_way)

    def summary(self, now: float) -> str:
        """One line."""
        eta = self.eta_s(now)
        parts = [f"{self.title}: {self.done_text}"]
        parts += [f"{self.found} found"] if self.found else []
        parts += [f"{self.failed} failed"] if self.failed else []
        parts.append(f"{len(self.running)} running")
        parts.append(duration(now - self.started))
        parts += [f"about {duration(eta)} to go"] if eta is not None and self.running else []
        return " · ".join(parts)


def cell_title(cell: Cell) -> str:
    """`CL-EPIDTN, seed 2, model.layers=5`."""
    from cluster.evaluation.systems.systems import SYSTEMS

    swept = [f"{key}={value}" for key, value in cell.point.items()]
    which = f"trial {cell.trial}" if cell.trial else f"seed {cell.seed}"
    return ", ".join([SYSTEMS[cell.system].title, which, *swept])


class EvaluationDisplay:
    """Takes the events of a grid and shows them."""

    def __init__(self, title: str, cells: Sequence[Cell], console: Terminal) -> None:
        first_of: dict[str, Cell] = {}
        for cell in cells:
            first_of.setdefault(cell.key, cell)
        self.view = EvaluationView(title, first_of)
        self.view.passes_left = sum(cell.passes for cell in first_of.values())
        self.console = console
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self._render, console=self.console, refresh_per_second=2, transient=True
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def take(self, event: CellEvent) -> None:
        """Show one event."""
        view, key = self.view, event.cell.key
        now = time.monotonic()
        if event.kind == "started":
            view.running[key] = _Running(event.cell, now)
        elif event.kind == "pass" and key in view.running:
            view.running[key].report = event.report
            self._say_pass(event)
        elif event.kind in ("found", "finished", "failed"):
            self._close(event)

    def _close(self, event: CellEvent) -> None:
        view, key = self.view, event.cell.key
        view.running.pop(key, None)
        view.passes_left -= event.cell.passes
        setattr(view, event.kind, getattr(view, event.kind) + 1)
        if event.kind == "finished":
            view.passes_done += event.cell.passes
        if event.kind == "failed":
            self.say(f"{cell_title(event.cell)}: failed: {event.error}")
        elif event.kind == "finished" and event.result is not None:
            shown = event.result.figures.get("hr@10", event.result.validation)
            what = "validation HR@10" if event.cell.trial else "HR@10"
            self.say(f"{cell_title(event.cell)}: {what} {rate(shown, 4)} in {duration(event.result.wall_s)}")

    def _say_pass(self, event: CellEvent) -> None:
        # With a single pass, its end is the cell's end, which is reported anyway.
        several = event.cell.passes > 1 or (event.report is not None and event.report.stages > 1)
        if self._live is None and event.report is not None and several:
            self.say(f"{cell_title(event.cell)}: {_pass_text(event.report)}")

    def say(self, sentence: str) -> None:
        """Print a sentence with the elapsed time."""
        elapsed = time.monotonic() - self.view.started
        self.console.print(f"{elapsed:7.1f} s  {sentence}", soft_wrap=True)

    def _render(self) -> Group:
        now = time.monotonic()
        table = Table(box=None, pad_edge=False, show_header=False)
        for running in self.view.running.values():
            text = _pass_text(running.report) if running.report else "first pass"
            table.add_row(cell_title(running.cell), text, duration(now - running.started))
        return Group(line(self.view.summary(now), style="bold"), table)


def _pass_text(report: PassReport) -> str:
    if report.stages:
        return f"walk-forward {report.stage}/{report.stages}  HR@10 {rate(report.validation, 4)}"
    loss = f"loss {report.loss:.3f}  " if report.loss == report.loss else ""
    return (
        f"pass {report.number}/{report.passes}  {loss}validation HR@10 {rate(report.validation, 4)} "
        f"(best {rate(report.best, 4)})"
    )
