"""The command of every benchmark: its docstring as help, `--json`, and a status that says whether it passed."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from model.config import ModelConfig
from tests.benchmarks.support.synthetic import Population
from tests.benchmarks.support.window import Window

_Case = TypeVar("_Case")


def benchmark_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with `--json`.

    Args:
        description: the docstring of the benchmark's file.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here")
    return parser


def case_of(case: type[_Case], description: str | None) -> tuple[_Case, Path | None]:
    """The fields of a dataclass as options, each with its default; also the file that `--json` names.

    Args:
        case: of ints, floats, and texts, all with defaults.
        description: the docstring of the benchmark's file.
    """
    parser, defaults = benchmark_parser(description), vars(case())
    for name, default in defaults.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, dest=name, type=type(default), default=default)
    arguments = parser.parse_args()
    return case(**{name: getattr(arguments, name) for name in defaults}), arguments.json


def add_window_options(parser: argparse.ArgumentParser, runs: int, steps: int, batch_events: int) -> None:
    """Options of a benchmark that trains on a synthetic stream; the numbers are the defaults."""
    parser.add_argument("--runs", type=int, default=runs)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch-events", type=int, default=batch_events)
    parser.add_argument("--prefill", type=int, default=Window.prefill, help="events that only fill histories")
    parser.add_argument("--validation", action="store_true", help="with progressive validation")
    parser.add_argument("--dim", type=int, default=ModelConfig.dim)
    parser.add_argument("--layers", type=int, default=ModelConfig.layers)
    parser.add_argument(
        "--burst", type=float, default=Population.burst, help="mean events of a user in a row"
    )


def window_of(arguments: argparse.Namespace) -> tuple[Population, Window, ModelConfig]:
    """What `add_window_options` asked for."""
    return (
        Population(burst=arguments.burst),
        Window(
            prefill=arguments.prefill,
            steps=arguments.steps,
            batch_events=arguments.batch_events,
            validation=arguments.validation,
        ),
        ModelConfig(dim=arguments.dim, layers=arguments.layers),
    )


def finish(result: Mapping[str, Any], file: Path | None) -> int:
    """Print the result as JSON, write it if asked to, and give the exit status: 1 if a bar was missed."""
    text = json.dumps(result, indent=2)
    print(text)
    if file is not None:
        file.write_text(text + "\n")
    return 0 if result.get("passed", True) else 1
