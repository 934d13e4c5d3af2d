"""The verb `status`: a run's progress, checkpoints, index versions and lag, read from outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from cluster.observability.figures import EXACT, SERVED
from deploy.command.errors import CommandError
from deploy.command.gates import gates_text
from deploy.command.options import ConfigOption, JsonOption, Overrides, settings
from deploy.command.output import write_json
from deploy.command.terminal import Terminal
from deploy.command.times import ago, local_time
from deploy.screen.progress import Progress, parse_progress
from deploy.screen.screen import (
    counted,
    deltas_text,
    freshness_text,
    number,
    rate,
    served_text,
    set_aside_text,
)
from streaming.events.faults import FAULTS

if TYPE_CHECKING:
    from cluster.config import FreshetConfig
    from retrieval.versions.store import VersionStore

SILENT_AFTER_S = 30.0

app = typer.Typer()


class NothingThere(CommandError):
    """No run has ever written into `storage_path`."""


@app.command(epilog="**Example:** `freshet status --config runs/demo/latest/settings.yaml`")
def status(overrides: Overrides = None, config: ConfigOption = None, json: JsonOption = None) -> None:
    """What a run is doing: progress, checkpoints, index versions, freshness, lag."""
    found = collect_status(settings(config, overrides))
    write_json(json, found)
    print_status(Terminal(), found)


def collect_status(config: FreshetConfig) -> dict[str, Any]:
    """The state of a run, read without affecting it.

    Returns:
        `storage_path`, `progress` (progress.json or null), `time` (of it, ISO 8601, local), `age_s` (seconds),
        `checkpoints` and `index_versions` (name, step, ...; oldest first), `index_current` (name or null),
        `lag_messages` and `lag_events` (null if the broker cannot tell; the latter is an estimate), `broker`
        (`answers` or why not).
    Raises:
        NothingThere: there is no progress, no checkpoint and no version.
    """
    from cluster.observability.progress_file import read_progress
    from retrieval.versions.store import VersionError, VersionStore

    storage = Path(config.storage_path)
    record = read_progress(storage)
    checkpoints = _checkpoints(config)
    index = VersionStore(config.index_location)
    versions = _readable(index.names(), lambda name: index.open(name).manifest, VersionError)
    if record is None and not checkpoints and not versions:
        raise NothingThere(
            f"no trainer has written anything into {storage} "
            "(setting: storage_path, or --config RUN/settings.yaml)"
        )
    status: dict[str, Any] = {
        "storage_path": str(storage),
        "progress": record,
        "time": local_time(parse_progress(record).time_s) if record else None,
        "age_s": time.time() - parse_progress(record).time_s if record else None,
        "checkpoints": [_brief(manifest, "step", "written_ms") for manifest in checkpoints],
        "index_versions": [
            _brief(manifest, "items", "recall", "nprobe", "nlist", "step", "refused") for manifest in versions
        ],
        "index_current": _live_name(index),
    }
    return status | _lag(config, checkpoints, record)


def _live_text(status: dict[str, Any]) -> str:
    """The live version; a refresh or a rollback may have changed it since training last reported it."""
    live = next((v for v in status["index_versions"] if v["name"] == status["index_current"]), None)
    if live is None:
        return "no version yet"
    probes = f"nprobe {live.get('nprobe', '–')} of {live.get('nlist', '–')}"
    return f"{number(live.get('items'))} items, recall@10 {rate(live.get('recall'))} ({probes})"


def _gates_text(status: dict[str, Any]) -> str:
    """What this run's last version showed, and why the newest of all versions was refused, if it was."""
    index = (status["progress"] or {}).get("index") or {}
    checks = (index.get("gate") or {}).get("checks")
    said = gates_text(checks) if checks else "no version of this run yet"
    newest = status["index_versions"][-1] if status["index_versions"] else {}
    return f"{said}; {newest['name']} was refused: {newest['refused']}" if newest.get("refused") else said


def _checkpoints(config: FreshetConfig) -> list[dict[str, Any]]:
    """Readable manifests, oldest first; `freshet checkpoint list` reports the others."""
    from cluster.checkpoints.manifest import CheckpointError, read_manifest
    from retrieval.storage.opening import open_storage

    storage = open_storage(config.checkpoint_location)
    return _readable(storage.names(), lambda name: read_manifest(storage, name), CheckpointError)


def _readable(
    names: Iterable[str], read: Callable[[str], Mapping[str, Any]], damaged: type[Exception]
) -> list[dict[str, Any]]:
    found = []
    for name in names:
        with suppress(damaged, OSError):  # being pruned, or damaged: the verifying commands report it
            found.append({**read(name), "name": name})
    return found


def _brief(manifest: dict[str, Any], *keys: str) -> dict[str, Any]:
    fields = {**manifest, **(manifest.get("metadata") or {})}
    return {"name": manifest["name"], **{key: fields[key] for key in keys if key in fields}}


def _live_name(store: VersionStore) -> str | None:
    try:
        return store.live_name()
    except OSError:
        return None


def _lag(
    config: FreshetConfig, checkpoints: list[dict[str, Any]], record: dict[str, Any] | None
) -> dict[str, Any]:
    """The lag between the newest checkpoint's positions and the ends of the topic; for files, as the run reports it."""
    from streaming.sources.kafka_source import end_offsets, first_offsets

    progress = parse_progress(record)
    if config.stream.parquet:
        lag = {"lag_messages": progress.lag_messages, "lag_events": progress.lag_events}
        return {**lag, "broker": "not contacted: the run reads files"}
    topic = config.stream.interactions_topic
    newest = checkpoints[-1] if checkpoints else {}
    positions = checkpoint_offsets(newest)
    try:
        ends = end_offsets(config.stream, topic)
        starts = {} if positions.keys() >= ends.keys() else first_offsets(config.stream, topic)
    except RuntimeError as error:
        return {"lag_messages": None, "lag_events": None, "broker": " ".join(str(error).split())}
    lag_messages = sum(max(0, end - positions.get(p, starts.get(p, 0))) for p, end in ends.items())
    per_message = events_per_message(newest, progress)
    lag_events = 0 if not lag_messages else None if per_message is None else round(lag_messages * per_message)
    return {"lag_messages": lag_messages, "lag_events": lag_events, "broker": "answers"}


def events_per_message(manifest: dict[str, Any], progress: Progress) -> float | None:
    """Mean rows per message up to a checkpoint, else of the waiting messages; None if neither is known."""
    origin = (manifest.get("stream") or {}).get("origin") or {}
    read = sum(max(0, at - int(origin.get(str(p), 0))) for p, at in checkpoint_offsets(manifest).items())
    if read and manifest.get("rows_read"):
        return float(manifest["rows_read"] / read)
    if progress.lag_messages and progress.lag_events:
        return progress.lag_events / progress.lag_messages
    return None


def checkpoint_offsets(manifest: dict[str, Any]) -> dict[int, int]:
    """Next offset to read per partition, from a checkpoint's manifest."""
    positions = manifest.get("positions") or {}
    return {int(p): int(at[0] if isinstance(at, list) else at) for p, at in positions.items()}


def print_status(console: Terminal, status: dict[str, Any]) -> None:
    """Print it as a small table."""
    progress = parse_progress(status["progress"])
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in status_rows(status, progress):
        table.add_row(*row)
    console.print(table)


def status_rows(status: dict[str, Any], progress: Progress) -> list[tuple[str, str]]:
    """Label and text of each line of the table."""
    curve = progress.progressive
    versions = [
        f"{entry['name']} (refused)" if entry.get("refused") else entry["name"]
        for entry in status["index_versions"]
    ]
    return [
        ("storage", status["storage_path"]),
        ("state", _state(status, progress)),
        (
            "trained",
            f"{counted(progress.events_trained, 'event')} in {counted(progress.step, 'step')}"
            f"{set_aside_text(progress.set_aside)}, "
            f"{counted(progress.dead_letters, 'dead letter')}, {counted(progress.restarts, 'restart')}",
        ),
        *_fault_rows(progress),
        ("speed", f"{number(progress.examples_per_s)} examples/s on {counted(progress.workers, 'worker')}"),
        (
            "HR@10 exact",
            f"{rate(curve.rate(curve.hits))} on {counted(curve.sample_size(), 'event')} ({EXACT})",
        ),
        ("HR@10 served", f"{served_text(progress.served)} ({SERVED})"),
        ("checkpoints", _checkpoints_text(status["checkpoints"])),
        ("index", f"{', '.join(versions) or 'no versions'}; live: {status['index_current'] or 'none'}"),
        ("live index", _live_text(status)),
        ("gates", _gates_text(status)),
        ("deltas", deltas_text(progress)),
        ("last refresh", str(progress.deltas.get("refresh") or "by the clock")),
        ("freshness", f"of versions: {freshness_text(progress.freshness)}"),
        ("", f"of deltas: {freshness_text(progress.deltas, progress.freshness.get('window_s'))}"),
        ("lag", _lag_text(status)),
    ]


def _fault_rows(progress: Progress) -> list[tuple[str, str]]:
    """What was wrong with data, the most frequent first; no row if nothing was."""
    counts = ((code, count) for code, count in progress.faults.items() if count)
    faults = sorted(counts, key=lambda fault: -fault[1])
    said = (f"{code} {count:,} ({FAULTS[code].remedy})" for code, count in faults if code in FAULTS)
    return [("faults", "; ".join(said))] if faults else []


def _checkpoints_text(checkpoints: list[dict[str, Any]]) -> str:
    if not checkpoints:
        return "none"
    names = ", ".join(entry["name"] for entry in checkpoints)
    written_ms = checkpoints[-1].get("written_ms")
    if not written_ms:
        return names
    return f"{names}; the newest written {local_time(written_ms / 1000)}, {ago(written_ms / 1000)}"


def _lag_text(status: dict[str, Any]) -> str:
    messages, events = status["lag_messages"], status["lag_events"]
    if messages is None:
        return f"unknown: {status['broker']}"
    if events is None:
        return f"{counted(messages, 'message')} behind the newest checkpoint; their number of events is not yet known"
    about = "about " if events else ""
    return (
        f"{about}{counted(events, 'event')} behind the newest checkpoint, in {counted(messages, 'message')}"
    )


def _state(status: dict[str, Any], progress: Progress) -> str:
    if status["progress"] is None:
        return "no run has written its progress yet"
    when = f"as of {status['time']}, {ago(progress.time_s)}"
    if progress.error:
        return f"{progress.state} ({when}): {progress.error}"
    if progress.state != "finished" and float(status["age_s"]) > SILENT_AFTER_S:
        return (
            f"{progress.state}, but silent since {status['time']}, {ago(progress.time_s)}: it may have died"
        )
    return f"{progress.state} ({when})"
