"""The verbs `checkpoint list`, `verify` and `diff`: stored checkpoints, their integrity, and their differences."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from deploy.command.errors import CommandError, UsageError
from deploy.command.options import ConfigOption, JsonOption, Overrides, settings
from deploy.command.output import write_json
from deploy.command.terminal import Terminal, line
from deploy.command.times import clock, local_time, short_duration

if TYPE_CHECKING:
    from cluster.checkpoints.checkpoint import Checkpoint, CheckpointStore
    from cluster.config import FreshetConfig

_COUNTERS = ("step", "workers", "events_trained", "rows_read", "dead_letters")

NameOption = Annotated[
    list[str] | None,
    typer.Option("--name", help="Only this one; may be repeated. Default: all.", show_default=False),
]
"""The checkpoints or versions that `verify` reads."""

app = typer.Typer(help="Inspect the checkpoints of a run.", no_args_is_help=True)


class NoSuchCheckpoint(CommandError):
    """There is no checkpoint of that name; names the location and the setting."""


@app.command("list", epilog="**Example:** `freshet checkpoint list storage_path=runs/movies`")
def checkpoint_list(
    overrides: Overrides = None, config: ConfigOption = None, json: JsonOption = None
) -> None:
    """The checkpoints of a run: full or delta (and how many deltas since the full one), events, sizes, age.

    `--json` also has parents, steps, workers and dead letters.
    """
    entries = list_checkpoints(settings(config, overrides))
    write_json(json, entries)
    print_list(Terminal(), entries)


@app.command("verify", epilog="**Example:** `freshet checkpoint verify storage_path=runs/movies`")
def checkpoint_verify(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    name: NameOption = None,
) -> None:
    """Read every file of the checkpoints and of those they build on; exits 1 if one is damaged."""
    results = verify_checkpoints(settings(config, overrides), name or [])
    report_verified(json, results)


@app.command("diff", epilog="**Example:** `freshet checkpoint diff --old step-00000100 --new step-00000200`")
def checkpoint_diff(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    old: Annotated[
        str, typer.Option(help="A checkpoint of the run by its name, or a path.", show_default=False)
    ] = "",
    new: Annotated[str, typer.Option(help="The one to compare with it.", show_default=False)] = "",
) -> None:
    """Compare two checkpoints: counters, positions, settings, rows by table, users, towers."""
    if not old or not new:
        raise UsageError(
            "checkpoint diff compares two: give --old and --new (`freshet checkpoint list` names them)"
        )
    found = diff_checkpoints(settings(config, overrides), old, new)
    write_json(json, found)
    print_difference(Terminal(), found)


def list_checkpoints(config: FreshetConfig) -> list[dict[str, Any]]:
    """One entry per checkpoint, oldest first.

    Returns:
        `name`, `kind` (full or delta), `parent` (name or null), `links` (of its chain), `bytes` (of its own files),
        `chain_bytes`, `written` (ISO 8601, local, or null), `step`, `workers`, `events_trained`, `rows_read`,
        `dead_letters`; for one that cannot be read, `name` and `error`.
    Raises:
        NoSuchCheckpoint: there is none at all.
    """
    from cluster.checkpoints.manifest import CheckpointError

    store = _store(config)
    entries: list[dict[str, Any]] = []
    for name in store.names():
        try:
            entries.append(_entry(store.open(name)))
        except CheckpointError as error:
            entries.append({"name": name, "error": str(error)})
    if not entries:
        raise _none_in(store)
    return entries


def verify_checkpoints(config: FreshetConfig, names: list[str]) -> list[dict[str, Any]]:
    """Read every file of the named checkpoints (by default all) and of those that they build on.

    Returns:
        `name`, `whole` (including those it builds on), `files` (name, bytes, problem: empty if none), `problem`.
    Raises:
        NoSuchCheckpoint: there is none at all, or none of a name.
    """
    from cluster.checkpoints.manifest import CheckpointError, read_manifest
    from retrieval.storage.files import file_problem

    store = _store(config)
    results = []
    chosen = _existing(store, names or store.names())
    if not chosen:
        raise _none_in(store)
    for name in chosen:
        files: list[dict[str, Any]] = []
        problem = ""
        try:
            for entry in read_manifest(store.storage, name)["files"]:
                found = file_problem(store.storage, name, entry)
                files.append({"name": entry["name"], "bytes": entry["size"], "problem": found})
            store.verified(name)
        except CheckpointError as error:
            problem = str(error)
        results.append({"name": name, "whole": not problem, "files": files, "problem": problem})
    return results


def diff_checkpoints(config: FreshetConfig, old: str, new: str) -> dict[str, Any]:
    """What changed from `old` to `new`, both by name: see `cluster.audit.state.difference`."""
    from cluster.audit.state import difference, read_state

    states = [read_state(checkpoint_named(config, name)) for name in (old, new)]
    return {"old": old, "new": new, **difference(*states)}


def checkpoint_named(config: FreshetConfig, name: str = "") -> Checkpoint:
    """A checkpoint of the run by its name, any by its path, or the newest one.

    Raises:
        NoSuchCheckpoint: there is none, or none of that name.
        CheckpointError: it is damaged.
    """
    from cluster.checkpoints.checkpoint import open_checkpoint

    if "/" in name:
        return open_checkpoint(name)
    store = _store(config)
    if not name:
        newest = store.newest()
        if newest is None:
            raise _none_in(store)
        return newest
    [found] = _existing(store, [name])
    return store.verified(found)


def _store(config: FreshetConfig) -> CheckpointStore:
    from cluster.checkpoints.checkpoint import CheckpointStore

    return CheckpointStore(config.checkpoint_location)


def _none_in(store: CheckpointStore) -> NoSuchCheckpoint:
    return NoSuchCheckpoint(
        f"no checkpoint in {store.where} (setting: storage_path or train.checkpoint_path)"
    )


def _existing(store: CheckpointStore, names: list[str]) -> list[str]:
    known = store.names()
    for name in names:
        if name not in known:
            raise NoSuchCheckpoint(
                f"no checkpoint {name} in {store.where}; there are {', '.join(known) or 'none'} "
                "(setting: storage_path or train.checkpoint_path)"
            )
    return names


def _entry(checkpoint: Checkpoint) -> dict[str, Any]:
    manifest = checkpoint.manifest
    written = manifest.get("written_ms")
    return {
        "name": checkpoint.name,
        "kind": manifest["kind"],
        "parent": checkpoint.ancestors[-1].name if checkpoint.ancestors else None,
        "links": len(checkpoint.links),
        "bytes": checkpoint.size,
        "chain_bytes": sum(link.size for link in checkpoint.links),
        "written": local_time(written / 1000, timespec="milliseconds") if written else None,
        **{name: manifest.get(name) for name in _COUNTERS},
    }


def print_list(console: Terminal, entries: list[dict[str, Any]]) -> None:
    """One line per checkpoint, at most 80 columns wide with names of the usual length."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("checkpoint", "kind", "events", "own MB", "chain MB", "written", "ago"):
        table.add_column(
            name, no_wrap=name != "kind", justify="right" if "MB" in name or name == "events" else "left"
        )
    now = time.time()
    for entry in entries:
        if "error" in entry:
            table.add_row(entry["name"], line("unreadable", style="red"))
            continue
        written = datetime.fromisoformat(entry["written"]).timestamp() if entry["written"] else None
        table.add_row(
            entry["name"],
            "full" if entry["links"] == 1 else f"delta {entry['links'] - 1}",
            f"{entry['events_trained']:,}",
            f"{entry['bytes'] / 1e6:,.2f}",
            f"{entry['chain_bytes'] / 1e6:,.2f}",
            "–" if written is None else clock(written),
            "–" if written is None else short_duration(now - written),
        )
    console.print(table)
    for entry in entries:
        if "error" in entry:
            console.print(f"{entry['name']}: {entry['error']}")


def report_verified(json: Path | None, results: list[dict[str, Any]]) -> None:
    """Write and print the results of a `verify`, and end the command, with status 1 if anything is damaged."""
    write_json(json, results)
    print_verified(Terminal(), results)
    raise typer.Exit(0 if all(result["whole"] for result in results) else 1)


def print_verified(console: Terminal, results: list[dict[str, Any]]) -> None:
    """One line per checkpoint, and one per bad file."""
    for result in results:
        size = sum(file["bytes"] for file in result["files"])
        verdict = "whole" if result["whole"] else "DAMAGED"
        console.print(f"{result['name']}  {verdict}  {len(result['files'])} files, {size:,} bytes")
        for file in result["files"]:
            if file["problem"]:
                console.print(f"  {file['name']} {file['problem']}")
        if result["problem"]:
            console.print(f"  {result['problem']}")


def print_difference(console: Terminal, found: dict[str, Any]) -> None:
    """What changed, by kind."""
    if found["identical"]:
        console.print("identical: the same state, bit for bit")
    for kind in ("counters", "settings", "positions"):
        for name, (old, new) in found[kind].items():
            console.print(f"{kind:10} {name}: {old} -> {new}")
    for table, change in found["rows"].items():
        what = f"{change['added']:,} added, {change['removed']:,} removed, {change['changed']:,} changed"
        console.print(f"rows       table {table}: {what}, largest change {change['largest_change']:.3g}")
    users = found["users"]
    console.print(
        f"users      {users['added']:,} added, {users['removed']:,} removed, {users['changed']:,} changed"
    )
    for name, change in found["towers"].items():
        console.print(f"towers     {name}: {change if isinstance(change, str) else f'{change:.3g}'}")
