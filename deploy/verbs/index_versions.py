"""The verbs `index list`, `verify`, `promote`, and `rollback`: all versions, their integrity, and the live one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from deploy.command.errors import CommandError, UsageError
from deploy.command.options import ConfigOption, JsonOption, Overrides, settings
from deploy.command.output import print_fields, write_json
from deploy.command.terminal import Terminal, line
from deploy.screen.screen import number, rate
from deploy.verbs.checkpoints import NameOption, report_verified

if TYPE_CHECKING:
    from cluster.config import FreshetConfig
    from retrieval.versions.store import Version, VersionStore

_FIGURES = ("step", "items", "kind", "nlist", "nprobe", "recall")

app = typer.Typer(help="Inspect the index versions of a run, and choose the live one.", no_args_is_help=True)


class NoSuchVersion(CommandError):
    """There is no index version, or none of that name; names the location and the setting."""


class RefusedVersion(CommandError):
    """A gate refused the version; names the gate and how to serve the version nevertheless."""


ToOption = Annotated[
    str, typer.Option("--to", metavar="NAME", help="The version to serve.", show_default=False)
]


@app.command("list", epilog="**Example:** `freshet index list storage_path=runs/movies`")
def index_list(overrides: Overrides = None, config: ConfigOption = None, json: JsonOption = None) -> None:
    """The index versions of a run: items, kind, recall, size; which one is live, and why others were refused."""
    entries = list_versions(settings(config, overrides))
    write_json(json, entries)
    print_versions(Terminal(), entries)


@app.command("verify", epilog="**Example:** `freshet index verify storage_path=runs/movies`")
def index_verify(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    name: NameOption = None,
) -> None:
    """Read every file of the index versions; exits 1 if one is damaged."""
    results = verify_versions(settings(config, overrides), name or [])
    report_verified(json, results)


@app.command("promote", epilog="**Example:** `freshet index promote storage_path=runs/movies --to v00000007`")
def index_promote(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    to: ToOption = "",
    refused: Annotated[bool, typer.Option("--refused", help="Also if a gate refused the version.")] = False,
) -> None:
    """Make an index version live, if it is whole and passed its gates.

    Servers follow immediately. A trainer that keeps publishing makes its next version live as usual.
    """
    _serve(settings(config, overrides), json, "promote", to, refused=refused)


@app.command(
    "rollback", epilog="**Example:** `freshet index rollback storage_path=runs/movies --to v00000007`"
)
def index_rollback(
    overrides: Overrides = None, config: ConfigOption = None, json: JsonOption = None, to: ToOption = ""
) -> None:
    """Make an older index version live again, if it is still whole and passed its gates.

    Servers follow immediately. A trainer that keeps publishing makes its next version live as usual.
    """
    _serve(settings(config, overrides), json, "rollback", to)


def _serve(config: FreshetConfig, json: Path | None, verb: str, name: str, *, refused: bool = False) -> None:
    if not name:
        raise UsageError(f"index {verb} needs a version: give --to (`freshet index list` names them)")
    result = make_live(config, name, refused=refused)
    write_json(json, result)
    print_fields(result)


def list_versions(config: FreshetConfig) -> list[dict[str, Any]]:
    """One entry per version, oldest first.

    Returns:
        `name`, `live`, `bytes`, `step`, `items`, `kind`, `nlist`, `nprobe`, `recall` (null if not in its manifest);
        of a refused one also `refused` (why) and `gate` (name, value, bound, passed of each check); of one with deltas
        `deltas` (their number), `newest_delta` (its manifest, or null) and `refused_deltas` (why, by name); of one that
        cannot be read, `name`, `live` and `error`.
    Raises:
        NoSuchVersion: there is none at all.
    """
    from retrieval.versions.store import VersionError

    store = _store(config)
    live = store.live_name()
    entries: list[dict[str, Any]] = []
    for name in _existing(store, []):
        try:
            version = store.open(name)
            entries.append(
                {"name": name, "live": name == live, **_figures(version), **_deltas(store, version)}
            )
        except VersionError as error:
            entries.append({"name": name, "live": name == live, "error": str(error)})
    return entries


def verify_versions(config: FreshetConfig, names: list[str]) -> list[dict[str, Any]]:
    """Read every file of the named versions (by default of all).

    Returns:
        `name`, `whole`, `files` (name, bytes, problem: empty if none), `problem`; after a version, the same of each of
        its deltas, whose name has the version's before it.
    Raises:
        NoSuchVersion: there is none at all, or none of a name.
    """
    from retrieval.storage.files import file_problem
    from retrieval.versions.store import VersionError

    store = _store(config)
    results = []
    for name in _existing(store, names):
        files: list[dict[str, Any]] = []
        problem, deltas = "", []
        try:
            version = store.open(name)
            for entry in version.entries:
                found = file_problem(store.storage, name, entry)
                files.append({"name": entry["name"], "bytes": entry["size"], "problem": found})
            deltas = _verify_deltas(store, version)
        except VersionError as error:
            problem = str(error)
        whole = not problem and not any(file["problem"] for file in files)
        results += [{"name": name, "whole": whole, "files": files, "problem": problem}, *deltas]
    return results


def make_live(config: FreshetConfig, name: str, *, refused: bool = False) -> dict[str, Any]:
    """Make a version live.

    Args:
        config: of the run.
        name: of the version.
        refused: also if a gate refused it.
    Returns:
        `live`, its name, and `before`, the name of the one that was live (or null).
    Raises:
        NoSuchVersion: there is none of that name.
        RefusedVersion: a gate refused it, and `refused` is false; or it has no index.
        VersionCorrupt: one of its files is damaged; the live version stays.
    """
    from retrieval.versions.store import VersionRefused

    store = _store(config)
    [found] = _existing(store, [name])
    before = store.live_name()
    try:
        return {"live": store.rollback(found, refused=refused).name, "before": before}
    except VersionRefused as error:
        can_be = not refused and store.open(found).has_index
        help = "; `freshet index promote --refused` serves it all the same" if can_be else ""
        raise RefusedVersion(f"{error}{help}") from error


def _store(config: FreshetConfig) -> VersionStore:
    from cluster.queries.version_store import version_store

    return version_store(config)


def _existing(store: VersionStore, names: list[str]) -> list[str]:
    known = store.names()
    if not known:
        raise NoSuchVersion(f"no index version in {store.where} (setting: storage_path or train.index_path)")
    for name in names:
        if name not in known:
            raise NoSuchVersion(
                f"no index version {name} in {store.where}; there are {', '.join(known)} "
                "(setting: storage_path or train.index_path)"
            )
    return names or known


def _figures(version: Version) -> dict[str, Any]:
    refused = {"refused": version.refused, "gate": version.manifest.get("gate")} if version.refused else {}
    return {
        "bytes": sum(entry["size"] for entry in version.entries),
        **{name: version.manifest.get(name) for name in _FIGURES},
        **refused,
    }


def _deltas(store: VersionStore, version: Version) -> dict[str, Any]:
    from retrieval.deltas.chain import DeltaChain
    from retrieval.deltas.delta import DeltaError

    chain = DeltaChain(store, version)
    names, refused = chain.names(), chain.refused()
    if not names and not refused:
        return {}
    try:
        newest = dict(chain.open(names[-1]).manifest) if names else None
    except DeltaError:
        newest = None
    return {"deltas": len(names), "newest_delta": newest, "refused_deltas": refused}


def _verify_deltas(store: VersionStore, version: Version) -> list[dict[str, Any]]:
    from retrieval.deltas.chain import DeltaChain
    from retrieval.deltas.delta import DeltaError

    chain, results = DeltaChain(store, version), []
    for name, problem in chain.verify().items():
        try:
            entries = chain.open(name).entries
        except DeltaError:
            entries = []
        files = [{"name": entry["name"], "bytes": entry["size"], "problem": ""} for entry in entries]
        found = {"whole": not problem, "files": files, "problem": problem}
        results.append({"name": f"{version.name}/{name}", **found})
    return results


def print_versions(console: Terminal, entries: list[dict[str, Any]]) -> None:
    """One line per version, at most 80 columns wide."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("version", "state", "step", "items", "kind", "recall", "nprobe", "MB"):
        table.add_column(
            name, no_wrap=True, justify="left" if name in ("version", "state", "kind") else "right"
        )
    for entry in entries:
        state = "live" if entry["live"] else "refused" if "refused" in entry else ""
        if "error" in entry:
            table.add_row(entry["name"], state, line("unreadable", style="red"))
            continue
        table.add_row(
            entry["name"],
            state,
            number(entry["step"]),
            number(entry["items"]),
            str(entry["kind"] or "–"),
            rate(entry["recall"]),
            f"{entry['nprobe'] or '–'} of {entry['nlist'] or '–'}",
            f"{entry['bytes'] / 1e6:,.2f}",
        )
    console.print(table)
    for entry in entries:
        if "error" in entry:
            console.print(f"{entry['name']}: {entry['error']}")
        elif "refused" in entry:
            console.print(f"{entry['name']} was refused: {entry['refused']}")
        if "deltas" in entry:
            _print_deltas(console, entry)


def _print_deltas(console: Terminal, entry: dict[str, Any]) -> None:
    newest = entry["newest_delta"] or {}
    of_step = f", the newest of step {number(newest['step'])}" if "step" in newest else ""
    console.print(f"{entry['name']} has deltas: {entry['deltas']:,}{of_step}")
    for name, why in entry["refused_deltas"].items():
        console.print(f"{entry['name']}/{name} was refused: {why}")
