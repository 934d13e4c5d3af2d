"""Formats settings: an overview of the most important ones, whole sections, and plain lines for a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.table import Table

from deploy.command.terminal import Terminal, line, say

if TYPE_CHECKING:
    from deploy.command.setting_descriptions import Section, Setting

FIRST: Mapping[str, tuple[str, ...]] = {
    "Events": (
        "stream.bootstrap_servers",
        "stream.interactions_topic",
        "stream.parquet",
        "stream.user_attributes",
        "stream.positive_actions",
        "stream.negative_actions",
    ),
    "Results": ("storage_path", "train.checkpoint_path", "train.init_from"),
    "Training": (
        "device",
        "train.workers",
        "train.batch_events",
        "train.bounded",
        "model.dim",
        "table.max_rows",
    ),
    "Checkpoints and index versions": (
        "train.checkpoint_every_s",
        "train.publish_every_s",
        "index.min_recall",
    ),
}
"""The most important settings, by topic."""
_WIDEST = 100


def print_overview(console: Terminal, sections: Sequence[Section], values: Mapping[str, Any]) -> None:
    """The most important settings, those that were changed, and the sections."""
    by_key = {setting.key: setting for section in sections for setting in section.settings}
    first = {key for keys in FIRST.values() for key in keys}
    changed = [key for key, each in by_key.items() if values[key] != each.default and key not in first]
    for title, keys in {**FIRST, "Also changed": changed}.items():
        if keys:
            _print_table(console, title, [by_key[key] for key in keys], values)
    console.print(line("Sections", style="bold"))
    table = Table.grid(padding=(0, 2, 0, 0))
    for section in sections:
        table.add_row(line(section.name, style="cyan"), f"{len(section.settings):2}", section.purpose)
    console.print(table)
    console.print()
    console.print("To see one section: freshet settings SECTION. To see every setting: freshet settings all.")


def print_sections(console: Terminal, sections: Iterable[Section], values: Mapping[str, Any]) -> None:
    """Each setting with its value, type, bounds and whole help."""
    from deploy.command.setting_descriptions import shown

    for section in sections:
        console.print(line((section.name, "bold"), f"  {section.purpose}"))
        for setting in section.settings:
            changed = values[setting.key] != setting.default
            notes = [
                setting.type_name,
                setting.bounds,
                f"default {shown(setting.default)}" if changed else "",
            ]
            value = (shown(values[setting.key]), "bold" if changed else "")
            about = "  " + ", ".join(filter(None, notes))
            console.print()
            console.print(Padding(line((setting.key, "cyan"), " = ", value, (about, "dim")), (0, 0, 0, 2)))
            console.print(Padding(setting.help, (0, 0, 0, 6)), width=min(console.width, _WIDEST))
        console.print()


def print_lines(sections: Iterable[Section], values: Mapping[str, Any]) -> None:
    """One unwrapped line per setting: `key=value # help`."""
    from deploy.command.setting_descriptions import shown

    settings = [setting for section in sections for setting in section.settings]
    pairs = [f"{setting.key}={shown(values[setting.key])}" for setting in settings]
    width = min(max(map(len, pairs), default=0), 48)
    for pair, setting in zip(pairs, settings, strict=True):
        say(f"{pair:{width}}  # {setting.help}")


def _print_table(
    console: Terminal, title: str, settings: Iterable[Setting], values: Mapping[str, Any]
) -> None:
    from deploy.command.setting_descriptions import first_sentence, shown

    console.print(line(title, style="bold"))
    table = Table.grid(padding=(0, 2, 0, 0))
    key = max(len(key) for keys in FIRST.values() for key in keys)
    for width in (key, min(24, max(14, console.width // 5)), None):
        table.add_column(width=width, overflow="fold")
    for setting in settings:
        value = values[setting.key]
        style = "bold" if value != setting.default else ""
        table.add_row(
            line(setting.key, style="cyan"), line(shown(value), style=style), first_sentence(setting.help)
        )
    console.print(table)
    console.print()
