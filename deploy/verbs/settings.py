"""The verb `settings`: every setting with its value, default and meaning."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from deploy.command.options import ConfigOption, JsonOption, Overrides, offline_settings
from deploy.command.output import write_json
from deploy.command.terminal import Terminal

if TYPE_CHECKING:
    from cluster.evaluation.config import OfflineConfig


app = typer.Typer()


@app.command("settings", epilog="**Example:** `freshet settings train.checkpoint_every_s=30`")
def list_settings(overrides: Overrides = None, config: ConfigOption = None, json: JsonOption = None) -> None:
    """All settings with their values and meaning; those that are not the default are bold."""
    run_settings(offline_settings(config, overrides), json, Terminal())


def setting_entries(config: OfflineConfig) -> list[dict[str, Any]]:
    """One entry per setting: `key`, `type_name`, `default`, `help`, `value`."""
    from deploy.command.config_loading import describe_settings

    return [{**asdict(setting), "value": _value(config, setting.key)} for setting in describe_settings()]


def _value(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def run_settings(config: OfflineConfig, json_path: Path | None, console: Terminal) -> None:
    """Print and write them; a value that is not the default is bold."""
    entries = setting_entries(config)
    write_json(json_path, entries)
    table = Table(box=None, pad_edge=False)
    for name in ("setting", "value", "meaning"):
        table.add_column(name, overflow="fold")
    for entry in entries:
        changed = entry["value"] != entry["default"]
        table.add_row(entry["key"], f"{entry['value']}", entry["help"], style="bold" if changed else "")
    console.print(table)
