"""Writes an evaluation's tables: CSV for spreadsheets, JSON lines and YAML for the results of a search."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import yaml

from deploy.command.output import encoded, whole_file

if TYPE_CHECKING:
    from cluster.evaluation.grids.cell import Cell
    from cluster.evaluation.grids.grid import GridOutcome
    from cluster.evaluation.grids.summary import Row

Trials = Mapping[str, Sequence[tuple["Cell", dict[str, Any]]]]
"""By system: the trials' cells and the settings that they add."""


def write_cells(path: Path, cells: Sequence[Cell], outcome: GridOutcome) -> None:
    """One line per cell with a result."""
    lines = []
    for cell in cells:
        result = outcome.of(cell)
        if result is None:
            continue
        fitted = result.fitted
        lines.append(
            {
                "model": cell.system,
                "seed": cell.seed,
                **cell.point,
                **result.figures,
                "validation_hr@10": result.validation,
                "best_pass": fitted.best_pass,
                "refused_steps": fitted.refused_steps,
                "passes": len(fitted.validation),
                "train_s": fitted.train_s,
                "examples_per_s": fitted.examples_per_s,
                "wall_s": result.wall_s,
                "cell": result.key,
            }
        )
    _write_csv(path, lines)


def write_results(path: Path, rows: Sequence[Row]) -> None:
    """One line per model, or per model and swept value, like the table."""
    lines = []
    for row in rows:
        figures: dict[str, Any] = {}
        for name in row.results[0].figures:
            figures |= {name: row.mean(name), f"{name}_std": row.std(name)}
        gains = {
            f"cl_epidtn_{metric}_{name}": value
            for metric, found in row.comparisons.items()
            for name, value in vars(found).items()
        }
        speed = {"seeds": row.seeds, "train_s": row.train_s, "examples_per_s": row.examples_per_s}
        lines.append({"model": row.system, **row.point, **figures, **speed, **gains})
    _write_csv(path, lines)


def trial_entries(trials: Trials, outcome: GridOutcome) -> list[dict[str, Any]]:
    """One entry per trial, by model and number."""
    entries = []
    for name, cells in trials.items():
        for cell, settings in cells:
            result = outcome.of(cell)
            entry: dict[str, Any] = {"model": name, "trial": cell.trial, "seed": cell.seed}
            if result is None:
                entry |= {"error": outcome.errors.get(cell.key, "not run")}
            else:
                fitted = result.fitted
                entry |= {
                    "validation_hr@10": result.validation,
                    "best_pass": fitted.best_pass,
                    "train_s": fitted.train_s,
                    "examples_per_s": fitted.examples_per_s,
                }
            entries.append(entry | {"settings": settings, "cell": cell.key})
    return entries


def write_trials(folder: Path, trials: Trials, outcome: GridOutcome) -> None:
    """The log of a search as `trials.jsonl` and `trials.csv`."""
    entries = trial_entries(trials, outcome)
    lines = b"".join(encoded(entry, orjson.OPT_APPEND_NEWLINE) for entry in entries)
    _write_text(folder / "trials.jsonl", lines.decode())
    _write_csv(
        folder / "trials.csv", [{**entry, "settings": json.dumps(entry["settings"])} for entry in entries]
    )


def write_tuned(path: Path, best: Mapping[str, Mapping[str, Any]], about: str) -> None:
    """The best settings by model, in the form that `--tuned` reads."""
    content = {name: dict(settings) for name, settings in best.items()}
    _write_text(path, f"# {about}\n{yaml.safe_dump(content, sort_keys=False)}")


def _write_csv(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    _write_text(path, text.getvalue())


def _write_text(path: Path, text: str) -> None:
    """Replace a file, atomically."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
