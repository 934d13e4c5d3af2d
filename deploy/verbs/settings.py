"""The verb `settings`: the most important settings, one section, or all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.command.options import ConfigOption, JsonOption
from deploy.command.output import write_json
from deploy.command.terminal import Terminal
from deploy.verbs.settings_screen import print_lines, print_overview, print_sections

if TYPE_CHECKING:
    from deploy.command.setting_descriptions import Section, Setting

EVERY = "all"

app = typer.Typer()


@app.command("settings", epilog="**Example:** `freshet settings stream`")
def list_settings(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SECTION]... [KEY=VALUE]...",
            help="Sections or single settings to show (`all`: every one), and values that override the file.",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = None,
) -> None:
    """Show settings with their values and meaning: the most important ones, a section, or all of them.

    Values that differ from the default are bold. In a pipe, each setting is one line, and all are listed unless a
    SECTION is given.
    """
    from deploy.command.config_loading import load_offline_config

    names = [word for word in words or [] if "=" not in word]
    values = load_offline_config(config, [word for word in words or [] if "=" in word])
    sections = chosen_sections(names)
    entries = [_entry(each, values) for section in sections for each in section.settings]
    write_json(json, entries)
    _show(Terminal(), names, sections, {entry["key"]: entry["value"] for entry in entries})


def chosen_sections(names: Sequence[str]) -> list[Section]:
    """The requested sections and settings; all of them without names.

    Raises:
        ConfigError: a name is neither a section nor a setting.
    """
    from cluster.setting_names import why_unknown
    from deploy.command.config_loading import ConfigError
    from deploy.command.setting_descriptions import Section, describe_sections

    sections = describe_sections()
    known = {section.name for section in sections} | {s.key for section in sections for s in section.settings}
    for name in names:
        if name not in known and name != EVERY:
            raise ConfigError(f"unknown section or setting '{name}'{why_unknown(name, known)}")
    if not names or EVERY in names:
        return sections
    chosen = ((section, _asked_for(section, names)) for section in sections)
    return [Section(section.name, section.purpose, found) for section, found in chosen if found]


def _asked_for(section: Section, names: Iterable[str]) -> tuple[Setting, ...]:
    if section.name in names:
        return section.settings
    return tuple(setting for setting in section.settings if setting.key in names)


def _entry(setting: Setting, values: Any) -> dict[str, Any]:
    for name in setting.key.split("."):
        values = getattr(values, name)
    return {**asdict(setting), "value": values}


def _show(
    console: Terminal, names: Sequence[str], sections: Sequence[Section], values: dict[str, Any]
) -> None:
    if not console.is_terminal:
        print_lines(sections, values)
    elif names:
        print_sections(console, sections, values)
    else:
        print_overview(console, sections, values)
