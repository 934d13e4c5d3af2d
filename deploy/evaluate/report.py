"""The table of an evaluation, and the same as data.

At most 120 columns wide: a row has two lines, with means above and deviations or intervals below.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.measure import Measurement
from rich.table import Table

from deploy.command.terminal import Terminal, stacked
from deploy.screen.screen import number, rate

if TYPE_CHECKING:
    from cluster.evaluation.grids.cell import Cell
    from cluster.evaluation.grids.grid import GridOutcome
    from cluster.evaluation.grids.summary import Row
    from cluster.evaluation.measuring.significance import Comparison

TABLE_WIDTH = 120
HEADINGS = {
    "hr@10": "HR\n@10",
    "hr@50": "HR\n@50",
    "recall@10": "Recall\n@10",
    "recall@50": "Recall\n@50",
    "ndcg@10": "NDCG\n@10",
    "tail_hr@10": "tail\nHR@10",
    "tail_hr@50": "tail\nHR@50",
    "low_activity_hr@10": "low act.\nHR@10",
}
GAINS = {
    "hr@10": "gain in\nHR@10",
    "ndcg@10": "gain in\nNDCG@10",
    "tail_hr@10": "gain in\ntail HR@10",
    "low_activity_hr@10": "gain in low\nact. HR@10",
}
LEFT_OUT_FIRST = (
    "gain in tail_hr@10",
    "gain in low_activity_hr@10",
    "recall@10",
    "recall@50",
    "tail_hr@10",
    "tail_hr@50",
    "low_activity_hr@10",
    "hr@50",
)


@dataclass
class EvaluationReport:
    """The results of one command."""

    rows: list[Row]
    data: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    """The request: protocol, preset, seeds, sweeps."""
    errors: dict[str, str] = field(default_factory=dict)
    """By the failed cell's title."""
    files: dict[str, list[Path]] = field(default_factory=dict)
    """The written files, by kind."""

    @property
    def walk_forward_days(self) -> int:
        """Of the protocol; 0 without a walk-forward."""
        return int(self.about.get("protocol", {}).get("walk_forward_days", 0))

    @property
    def protocol(self) -> str:
        """In words."""
        protocol, days = self.about.get("protocol", {}), self.walk_forward_days
        walk = f", walk-forward by {days} {'day' if days == 1 else 'days'}" if days else ""
        walk += " up to the test" if protocol.get("test_at_once") else ""
        ties = ", ties shuffled" if protocol.get("shuffle_ties") else ""
        return f"{protocol.get('kind', '').replace('_', ' ')}{walk}{ties}"

    def as_json(self) -> dict[str, Any]:
        """The result for machines; `results` has one object per model, or per model and swept value."""
        return {
            **self.about,
            "data": self.data,
            "results": [row_as_json(row) for row in self.rows],
            "failed": [{"cell": cell, "error": error} for cell, error in self.errors.items()],
            "files": {kind: paths for kind, paths in self.files.items() if paths},
        }


def build_report(cells: Sequence[Cell], outcome: GridOutcome, about: Mapping[str, Any]) -> EvaluationReport:
    """All results of the cells."""
    from cluster.evaluation.grids.summary import summarise
    from deploy.evaluate.progress import cell_title

    titles = {cell.key: cell_title(cell) for cell in cells}
    data = next((result.data for result in outcome.results.values()), {})
    errors = {titles.get(key, key): error for key, error in outcome.errors.items()}
    return EvaluationReport(summarise(cells, outcome), dict(data), dict(about), errors)


def row_as_json(row: Row) -> dict[str, Any]:
    """One object of `results`."""
    figures: dict[str, Any] = {}
    for name in row.results[0].figures:
        figures |= {name: row.mean(name), f"{name}_std": row.std(name)}
    return {
        "model": row.system,
        **({"sweep": dict(row.point)} if row.point else {}),
        **figures,
        "seeds": row.seeds,
        "train_s": row.train_s,
        "examples_per_s": row.examples_per_s,
        "validation_hr@10": row.validation,
        "refused_steps": row.refused_steps,
        "best_pass": [result.fitted.best_pass for result in row.results],
        "cells": [result.key for result in row.results],
        "cl_epidtn_against_it": {metric: asdict(found) for metric, found in row.comparisons.items()},
    }


def print_report(console: Terminal, report: EvaluationReport) -> None:
    """The table, its legend, failures, and the files."""
    if not console.is_terminal:
        console.width = max(console.width, TABLE_WIDTH)  # a file or a pipe has no width
    console.print()
    if report.rows:
        left_out = _too_wide(console, report)
        console.print(results_table(report, left_out))
        for line in legend(report, left_out):
            console.print(line, style="dim")
    for kind, paths in report.files.items():
        if paths:
            names = " · ".join(str(path) for path in paths)
            console.print(f"{kind:7} {names}", soft_wrap=True)
    for cell, error in report.errors.items():
        console.print(f"failed: {cell}: {error}", style="bold red", soft_wrap=True)


def _too_wide(console: Terminal, report: EvaluationReport) -> list[str]:
    """The columns that do not fit on a narrow terminal."""
    wide = console.options.update(width=10 * TABLE_WIDTH)
    for count in range(len(LEFT_OUT_FIRST) + 1):
        left_out = list(LEFT_OUT_FIRST[:count])
        if Measurement.get(console, wide, results_table(report, left_out)).maximum <= console.width:
            break
    return left_out


def results_table(report: EvaluationReport, left_out: Collection[str] = ()) -> Table:
    """One row per model, or per model and swept value; means over seeds with their standard deviations below."""
    names = [name for name in HEADINGS if name not in left_out]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(_of_lines(HEADINGS[name]), justify="right", no_wrap=True)
    gains = [name for name in GAINS if f"gain in {name}" not in left_out]
    for name in gains:
        table.add_column(_of_lines(GAINS[name]), justify="right", no_wrap=True)
    for heading in ("train\ns", "exam-\nples/s"):
        table.add_column(_of_lines(heading), justify="right", no_wrap=True)
    for row in _distinct(report.rows):
        table.add_row(*map(_of_lines, _cells_of(row, report.rows, names, gains)))
    return table


def _of_lines(cell: str) -> RenderableType:
    return stacked(cell.split("\n"))


def _distinct(rows: Sequence[Row]) -> list[Row]:
    """The rows, with only the first one of a model that the sweep does not change."""
    first_of: dict[tuple[str, ...], Row] = {}
    for row in rows:
        first_of.setdefault(tuple(result.key for result in row.results), row)
    return list(first_of.values())


def legend(report: EvaluationReport, left_out: Collection[str] = ()) -> list[str]:
    """The meaning of the columns."""
    data, row = report.data, report.rows[0]
    # In a walk-forward, a user can be a query in every stage.
    asked = "queries" if report.walk_forward_days else "users tested"
    lines = [
        f"{data['name']}, {report.protocol}: {data['test_queries']:,} {asked}, {data['test_targets']:,} targets "
        f"among all {data['items']:,} items; {_seeds(row.seeds)}",
    ]
    if any(row.comparisons for row in report.rows):
        lines.append(
            "gain: CL-EPIDTN over the row, with the 95 % interval of a paired bootstrap over users; p of a paired "
            "t-test: * < .05, ** < .01, *** < .001"
        )
    lines.append(
        "tail: items outside the 20 % trained on most; low act.: users with at most the median of training events"
    )
    if left_out:
        lines.append(f"no room for {', '.join(left_out)}: results.csv has them")
    outdated, cells = sum(row.outdated for row in report.rows), sum(row.seeds for row in report.rows)
    if outdated:
        lines.append(
            f"{outdated} of {cells} cells were measured by other code than is here now; "
            "remove their files to measure them again"
        )
    refused = {row.system: row.refused_steps for row in report.rows if row.refused_steps}
    if refused:
        counts = ", ".join(f"{system} {steps}" for system, steps in refused.items())
        lines.append(
            f"training steps left out, because a loss or a gradient was not finite: {counts}; "
            "lower fit.learning_rate or fit.row_learning_rate"
        )
    return lines


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"mean and standard deviation of {count} seeds"


def _cells_of(row: Row, rows: Sequence[Row], names: Sequence[str], gains: Sequence[str]) -> list[str]:
    from cluster.evaluation.systems.systems import SYSTEMS

    same = [other for other in rows if other.results[0].key == row.results[0].key]
    point = "\n".join(_setting(key, value) for key, value in row.point.items()) if len(same) == 1 else ""
    cells = [f"{SYSTEMS[row.system].title}\n{point}"]
    for name in names:
        deviation = f"±{rate(row.std(name), 4)}" if row.seeds > 1 else ""
        cells.append(f"{rate(row.mean(name), 4)}\n{deviation}")
    cells += [_gain(row.comparisons.get(name)) for name in gains]
    return [*cells, number(row.train_s, 1 if row.train_s < 100 else 0), number(row.examples_per_s)]


def _setting(key: str, value: object) -> str:
    return f" {key.rpartition('.')[2]}={f'{value:g}' if isinstance(value, float) else value}"


def _gain(found: Comparison | None) -> str:
    """`+5.2 %**` above `[+1.3, +9.1]`."""
    if found is None:
        return ""
    if math.isnan(found.gain):
        return f"{stars(found.p)}\n"
    low, high = found.gain_low * 100, found.gain_high * 100
    digits = 0 if max(abs(low), abs(high)) >= 100 else 1
    return f"{found.gain * 100:+.{digits}f} %{stars(found.p)}\n[{low:+.{digits}f}, {high:+.{digits}f}]"


def stars(p: float) -> str:
    """One for p < .05, two for p < .01, three for p < .001."""
    return "*" * sum(p < limit for limit in (0.05, 0.01, 0.001))
