"""The options of `evaluate`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from deploy.command.errors import UsageError
from deploy.command.options import ConfigOption, JsonOption, Overrides, offline_settings


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of `freshet evaluate`."""

    data: Annotated[str, typer.Option("--data", help="`ml-100k`, or a folder with interactions.parquet.")]
    overrides: Overrides = field(default_factory=list)
    config: ConfigOption = None
    json_path: JsonOption = None
    models: Annotated[str, typer.Option("--models", help="Names separated by commas, or all.")] = "all"
    seeds: Annotated[int, typer.Option("--seeds", help="Number of seeds: 1 to N.")] = 1
    sweeps: Annotated[
        list[str],
        typer.Option(
            "--sweep",
            metavar="KEY=V1,V2",
            help="Values of one setting; may be repeated.",
            show_default=False,
        ),
    ] = field(default_factory=list)
    preset: Annotated[
        Literal["default", "paper"],
        typer.Option("--preset", help="The best settings measured, or those of the paper."),
    ] = "default"
    trials: Annotated[
        int, typer.Option("--trials", min=0, help="Tune each model first, with this many validation runs.")
    ] = 0
    tuned: Annotated[
        Path | None,
        typer.Option(
            "--tuned",
            metavar="FILE",
            help="Settings per model, as a search has written them.",
            show_default=False,
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Default: runs/evaluate/NAME.", show_default=False),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=0,
            help="Cells at a time; 0 = one, without Ray. Default: what the CPUs allow.",
            show_default=False,
        ),
    ] = None
    ray_address: Annotated[
        str, typer.Option("--ray-address", help="A running Ray cluster; default: one here.")
    ] = ""

    @property
    def overridden(self) -> set[str]:
        """Keys that the arguments set."""
        return {override.partition("=")[0] for override in self.overrides or ()}


def sweep_points(options: EvaluateOptions) -> list[dict[str, Any]]:
    """One setting and value for each value of each sweep; other settings stay as configured.

    Raises:
        UsageError: a sweep without key or values.
        ConfigError: an unknown setting, or a value that it cannot have.
    """
    points: list[dict[str, Any]] = []
    for text in options.sweeps:
        key, _, values = text.partition("=")
        # Commas inside a list's brackets do not separate values.
        texts = [value for value in re.split(r",(?![^\[]*\])", values) if value]
        if not key or not texts:
            raise UsageError(
                f"'{text}' is not a sweep; write --sweep key=v1,v2, for example model.layers=1,2,5"
            )
        points += [{key: _value(options, key, value)} for value in texts]
    return points


def _value(options: EvaluateOptions, key: str, text: str) -> Any:
    value: Any = offline_settings(
        options.config, [*(options.overrides or ()), f"{key}={text}"], options.preset
    )
    for name in key.split("."):
        value = getattr(value, name)
    return value
