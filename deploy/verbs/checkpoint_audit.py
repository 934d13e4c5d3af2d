"""The verb `checkpoint audit`: compares a checkpoint's count of used events with a count of the topic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.command.errors import UsageError
from deploy.command.options import ConfigOption, JsonOption, Overrides, settings
from deploy.command.output import plain, print_fields, whole_file, write_json
from deploy.verbs.checkpoints import checkpoint_named

if TYPE_CHECKING:
    import pyarrow as pa

    from cluster.config import FreshetConfig

_FORMATS = (".csv", ".parquet")

app = typer.Typer()


@app.command(
    "audit", epilog="**Example:** `freshet checkpoint audit storage_path=runs/movies --users used.csv`"
)
def checkpoint_audit(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    name: Annotated[
        str, typer.Option("--name", help="This one, or a path. Default: the newest.", show_default=False)
    ] = "",
    users: Annotated[
        Path | None,
        typer.Option(
            "--users",
            metavar="FILE",
            help="Write the number of events used of each user: .csv or .parquet.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Count the topic again: was every event up to the checkpoint used exactly once? Exits 1 if not.

    Events after its positions are waiting, not lost. Works beside a run that trains.
    """
    found = audit_checkpoint(settings(config, overrides), name, users)
    write_json(json, found)
    print_fields(found)
    raise typer.Exit(0 if found["exactly_once"] else 1)


def audit_checkpoint(config: FreshetConfig, name: str, users_file: Path | None) -> dict[str, Any]:
    """Count the topic up to the checkpoint's positions, and compare with what the checkpoint has used.

    Args:
        config: names the topic and the storage path.
        name: of a checkpoint of the run, or a path; empty for the newest one.
        users_file: `.csv` or `.parquet`; gets the checkpoint's own count of each user's events (`user_id`, `events`).
    Returns:
        `checkpoint` (name), `step`, `exactly_once`, and the fields of `cluster.audit.exactly_once.Accounting`.
    Raises:
        NoSuchCheckpoint: there is none, or none of that name.
        UsageError: the file's name has neither suffix.
    """
    if users_file is not None and users_file.suffix not in _FORMATS:
        raise UsageError(f"--users must end in {' or '.join(_FORMATS)}, got {users_file}")
    from cluster.audit.exactly_once import used_per_user, verify_exactly_once

    checkpoint = checkpoint_named(config, name)
    if users_file is not None:
        _write_table(users_file, used_per_user(config, checkpoint.location))
    found = verify_exactly_once(config, checkpoint.location, up_to_positions=True)
    counts: dict[str, Any] = plain(found)
    return {
        "checkpoint": checkpoint.name,
        "step": checkpoint.step,
        "exactly_once": found.exactly_once,
        **counts,
    }


def _write_table(path: Path, table: pa.Table) -> None:
    with whole_file(path) as temporary:
        if path.suffix == ".csv":
            from pyarrow import csv

            csv.write_csv(table, temporary)
        else:
            from pyarrow import parquet

            parquet.write_table(table, temporary)
