"""The options of `demo`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from deploy.command.options import (
    ConfigOption,
    DatasetOption,
    EventsOption,
    JsonOption,
    Overrides,
    SecondsOption,
    TakeOverOption,
)


@dataclass(frozen=True)
class DemoOptions:
    """The options of `freshet demo`."""

    root: Annotated[Path, typer.Option("--dir", help="Each run gets a new folder in it.")] = Path("runs/demo")
    overrides: Overrides = field(default_factory=list)
    config_file: ConfigOption = None
    json_path: JsonOption = None
    seconds: SecondsOption = 160
    events: EventsOption = 0
    chaos: Annotated[bool, typer.Option("--chaos", help="SIGKILL a worker after the first checkpoint.")] = (
        False
    )
    dataset: DatasetOption = "ml-100k"
    partitions: Annotated[
        int, typer.Option("--partitions", min=1, help="Partitions of the interactions topic.")
    ] = 4
    stall_s: Annotated[
        float, typer.Option("--stall-seconds", help="Fail after this many seconds without progress.")
    ] = 300
    take_over: TakeOverOption = False
