"""The verbs `dead-letters list` and `dead-letters replay`."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from deploy.command.errors import CommandError
from deploy.command.options import ConfigOption, JsonOption, Overrides, settings
from deploy.command.output import print_fields, whole_file, write_json
from deploy.command.terminal import Terminal, say
from deploy.screen.screen import counted

if TYPE_CHECKING:
    from streaming.config import StreamConfig
    from streaming.dead_letters.replay import StoredLetter

_SHOWN = 100

app = typer.Typer(help="List rows that could not be used, and replay them.", no_args_is_help=True)
ReasonOption = Annotated[
    str, typer.Option(metavar="TEXT", help="Only letters whose reason contains this text.")
]


class BadEdit(CommandError):
    """An edit of a dead letter cannot be read; names the option."""


@app.command("list", epilog="**Example:** `freshet dead-letters list --out letters.jsonl`")
def dead_letters_list(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json_path: JsonOption = None,
    reason: ReasonOption = "",
    samples: Annotated[int, typer.Option(min=0, help="Samples shown of each reason.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Write all as JSON lines, to edit and replay.", show_default=False
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Include those that were replayed already.")] = False,
) -> None:
    """What is in the dead-letter topic: counts by reason, with samples."""
    found = list_letters(settings(config, overrides).stream, reason, samples, out, every=every)
    write_json(json_path, found)
    print_letters(Terminal(), found)


@app.command(
    "replay",
    epilog="**Example:** `freshet dead-letters replay --reason 'item_id is missing' --set item_id=7`",
)
def dead_letters_replay(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json_path: JsonOption = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Sets a field of each event; null removes it.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Edited JSON lines of `list --out`: only these are replayed.",
            show_default=False,
        ),
    ] = None,
    reason: ReasonOption = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only report what would be done.")] = False,
) -> None:
    """Send corrected dead letters back to the topic that they came from, each exactly once.

    Each event and its replay marker are one Kafka transaction, so the command can be repeated after a crash.
    """
    result = run_replay(settings(config, overrides).stream, set_ or [], file, reason, dry_run=dry_run)
    write_json(json_path, result)
    print_fields(result)
    for key, problem in list(result["problems"].items())[:10]:
        say(f"  {key}: {problem}")


def list_letters(
    config: StreamConfig, reason: str, samples: int, out: Path | None, *, every: bool
) -> dict[str, Any]:
    """Counts by reason with a few samples each; writes all letters as JSON lines if a file is given.

    Args:
        config: the stream.
        reason: only letters whose reason contains this text.
        samples: number per reason.
        out: a file to edit and pass to `replay --from`.
        every: include letters that were already replayed.
    """
    from streaming.dead_letters.replay import read_letters
    from streaming.events.faults import FAULTS

    found = read_letters(config)
    letters = [one for one in found if reason in one.reason and (every or not one.replayed)]
    if out is not None:
        lines = (json.dumps(_entry(letter), ensure_ascii=False) + "\n" for letter in letters)
        with whole_file(out) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
    counts = Counter((letter.code, letter.kind) for letter in letters)
    return {
        "topic": config.dead_letters,
        "letters": len(letters),
        "replayed": sum(letter.replayed for letter in found),
        "codes": dict(Counter(letter.code for letter in letters).most_common()),
        "reasons": [
            {
                "reason": kind,
                "code": code,
                "remedy": FAULTS[code].remedy,
                "count": count,
                "samples": [_entry(one) for one in letters if one.kind == kind][:samples],
            }
            for (code, kind), count in counts.most_common()
        ],
    }


def print_letters(console: Terminal, found: dict[str, Any]) -> None:
    """A table of reasons, and the samples."""
    console.print(
        f"{counted(found['letters'], 'dead letter')} in {found['topic']}, {found['replayed']:,} replayed"
    )
    if not found["reasons"]:
        return
    table = Table(box=None, pad_edge=False)
    for name in ("count", "code", "reason", "sample"):
        table.add_column(name, overflow="fold")
    for reason in found["reasons"]:
        first, *rest = reason["samples"] or [{}]
        table.add_row(f"{reason['count']:,}", reason["code"], reason["reason"], _shown(first))
        for sample in rest:
            table.add_row("", "", "", _shown(sample))
    console.print(table)
    for code, remedy in {reason["code"]: reason["remedy"] for reason in found["reasons"]}.items():
        console.print(f"{code}: {remedy}")


def run_replay(
    config: StreamConfig, edits: Sequence[str], file: Path | None, reason: str, *, dry_run: bool
) -> dict[str, Any]:
    """Replay letters, corrected by `KEY=VALUE` edits or by a file of JSON lines that `list` wrote.

    Raises:
        BadEdit: an edit or a line of the file cannot be read.
    """
    from streaming.dead_letters.replay import replay_letters

    events = _read_lines(file) if file is not None else None

    def chosen(letter: StoredLetter) -> bool:
        return reason in letter.reason and (events is None or letter.key in events)

    report = replay_letters(
        config, _corrector([_edit(text) for text in edits], events), chosen, dry_run=dry_run
    )
    return {
        "topic": config.dead_letters,
        "dry_run": dry_run,
        "replayed": report.replayed,
        "already": report.already,
        "unusable": len(report.unusable),
        "problems": report.unusable,
    }


def _corrector(
    edits: Sequence[tuple[str, Any]], events: dict[str, Any] | None
) -> Callable[[StoredLetter], Any]:
    def correct(letter: StoredLetter) -> Any:
        event = events[letter.key] if events is not None else letter.event
        if not isinstance(event, dict):
            return event
        return {k: v for k, v in (event | dict(edits)).items() if v is not None or k not in dict(edits)}

    return correct


def _edit(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise BadEdit(f"'{text}' is not an edit; write KEY=VALUE, for example item_id=7 (option --set)")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _read_lines(file: Path) -> dict[str, Any]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadEdit(f"{file} cannot be read: {error} (option --from)") from error
    events = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            events[entry["key"]] = entry["value"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadEdit(
                f"{file}, line {number} is not an object with key and value: {error!r} (option --from)"
            ) from error
    return events


def _entry(letter: StoredLetter) -> dict[str, Any]:
    """A letter as JSON: the original as JSON if possible, else as text, else in base64."""
    fields = ("key", "reason", "code", "topic", "partition", "offset", "row", "replayed")
    entry: dict[str, Any] = {name: getattr(letter, name) for name in fields}
    if letter.truncated:
        entry["truncated"] = letter.truncated
    event = letter.event
    if event is not None:
        return {**entry, "value": event}
    try:
        return {**entry, "value": letter.value.decode("utf-8")}
    except UnicodeDecodeError:
        return {**entry, "value": None, "value_base64": base64.b64encode(letter.value).decode()}


def _shown(sample: dict[str, Any]) -> str:
    if not sample:
        return ""
    value = sample.get("value")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return re.sub(r"\s+", " ", f"{sample['key']}  {text}")[:_SHOWN]
