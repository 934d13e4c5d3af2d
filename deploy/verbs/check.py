"""The verb `check`: what would be trained from the topics, and which settings to change, before anything runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from deploy.command.options import ConfigOption, JsonOption, Overrides, settings
from deploy.command.output import write_json
from deploy.command.terminal import Terminal
from deploy.command.times import local_time

if TYPE_CHECKING:
    from streaming.checking.check import Checked

SAMPLE = 2000
SampleOption = Annotated[int, typer.Option("--sample", min=1, help="About how many messages of each topic.")]

app = typer.Typer()


@app.command(epilog="**Example:** `freshet check --config my.yaml`")
def check(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    sample: SampleOption = SAMPLE,
) -> None:
    """Read a sample of each topic and say what would be trained; exits 0 only if training would work."""
    from streaming.checking.check import check_topics

    finish(check_topics(settings(config, overrides).stream, sample), json)


def finish(checked: Checked, json: Any) -> None:
    """Print the result, write it as JSON if a file is given, and exit."""
    found = as_data(checked)
    write_json(json, found)
    print_check(Terminal(), found)
    raise typer.Exit(0 if checked.trains else 1)


def as_data(checked: Checked) -> dict[str, Any]:
    """The result as plain data."""
    topics = [
        {name: value for name, value in asdict(profile).items() if name != "objects"}
        for profile in checked.profiles
    ]
    problems = [asdict(problem) for problem in checked.problems]
    return {"trains": checked.trains, "topics": topics, "problems": problems}


def print_check(console: Terminal, found: dict[str, Any]) -> None:
    """Tables of each topic's figures and fields, and the problems with what to change."""
    for topic in found["topics"]:
        console.print(_figures(topic))
        if topic["fields"]:
            console.print(_fields(topic["fields"]))
        console.print()
    if found["problems"]:
        table = Table(box=None, pad_edge=False)
        for name in ("", "where", "problem", "change"):
            table.add_column(name, overflow="fold")
        for problem in found["problems"]:
            weight = "stops" if problem["stops"] else "note"
            table.add_row(weight, problem["where"], problem["what"], problem["change"])
        console.print(table)
    console.print("training would work" if found["trains"] else "training would not work")


def _figures(topic: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(topic["kind"], topic["name"])
    sample = f"{topic['messages']:,} messages, {topic['rows']:,} rows, {topic['usable']:,} usable"
    table.add_row("sample", sample)
    if topic["formats"]:
        table.add_row("formats", _counts(topic["formats"]))
    if topic["codecs"]:
        table.add_row("codecs", f"{_counts(topic['codecs'])} (batches)")
    facts = dict(topic["facts"])
    if facts.get("last_ms"):
        first, last = (local_time(facts[name] / 1000) for name in ("first_ms", "last_ms"))
        table.add_row("times", f"{first} to {last}, read as {facts['unit']}")
    for name in ("users", "items", "partitions", "positive", "negative", "ignored"):
        if name in facts:
            table.add_row(name, f"{facts[name]:,}")
    for name in ("actions", "keys"):
        if facts.get(name):
            table.add_row(name, _counts(facts[name]))
    for name in ("with_title", "with_categories", "with_attributes"):
        if name in facts:
            table.add_row(name.replace("_", " "), f"{facts[name]:,}")
    if topic["faults"]:
        table.add_row("faults", _counts(topic["faults"]))
    return table


def _fields(fields: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("field", "share", "read as", "example"):
        table.add_column(name, overflow="fold")
    for line in fields:
        table.add_row(line["field"], f"{line['share']:.0%}", line["read_as"] or "–", line["example"])
    return table


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
