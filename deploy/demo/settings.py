"""The settings of one demo run, kept in its folder, so that every other verb can use them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from deploy.command.config_loading import load_config
from deploy.demo.options import DemoOptions
from retrieval.storage.durable import PRIVATE_FOLDER

if TYPE_CHECKING:
    from cluster.config import FreshetConfig

SETTINGS_FILE = "settings.yaml"
# Shorter intervals than on a cluster, so that a demo shows their effects within two minutes.
DEMO_DEFAULTS = {"train.workers": 2, "train.publish_every_s": 5.0, "train.checkpoint_every_s": 10.0}


def given_settings(options: DemoOptions) -> dict[str, Any]:
    """The settings in the user's file and overrides, by dotted key; overrides win."""
    content = yaml.safe_load(options.config_file.read_text()) if options.config_file else None
    return {**_flat(content or {}), **_parsed(options.overrides or ())}


def own_bootstrap_servers(options: DemoOptions) -> str:
    """The cluster that the user named in the file or the overrides; empty if none was named."""
    return str(given_settings(options).get("stream.bootstrap_servers") or "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        flat |= _flat(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return flat


def _parsed(overrides: Sequence[str]) -> dict[str, Any]:
    pairs = (override.partition("=") for override in overrides)
    return {key: yaml.safe_load(text) if text else "" for key, _, text in pairs}


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return nested


def new_run_dir(root: Path) -> Path:
    """A new folder for each run, named by the time; `root/latest` points to it."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    root = root.absolute()
    root.mkdir(parents=True, exist_ok=True)
    for attempt in range(1000):
        run_dir = root / (stamp if attempt == 0 else f"{stamp}-{attempt}")
        try:
            run_dir.mkdir(mode=PRIVATE_FOLDER)  # histories, events and logs
        except FileExistsError:
            continue
        _point_latest_at(run_dir)
        return run_dir
    raise FileExistsError(f"{root} already has a thousand runs that started in this second (setting: --dir)")


def _point_latest_at(run_dir: Path) -> None:
    link = run_dir.parent / "latest"
    if link.is_symlink() or not link.exists():
        temporary = run_dir.parent / f".latest-{run_dir.name}"
        temporary.symlink_to(run_dir.name)
        temporary.replace(link)


def write_settings(options: DemoOptions, run_dir: Path, decided: Mapping[str, Any]) -> FreshetConfig:
    """Write the demo's defaults, overridden by the user's settings, overridden by the run's own.

    Returns:
        The configuration, as loaded by `freshet … --config RUN_DIR/settings.yaml`.
    Raises:
        ConfigError: a setting is unknown or has a wrong value.
    """
    settings = {**DEMO_DEFAULTS, **given_settings(options), **decided}
    path = run_dir / SETTINGS_FILE
    path.write_text(yaml.safe_dump(_nested(settings), sort_keys=False, allow_unicode=True))
    return load_config(path, [])


def run_settings(
    run_dir: Path, bootstrap_servers: str, events: int, *, shared_broker: bool
) -> dict[str, Any]:
    """The run's own settings: its broker, its folder, its end.

    On an existing cluster, the run's topics get unique names, so that no other topic is read.
    """
    settings: dict[str, Any] = {
        "stream.bootstrap_servers": bootstrap_servers,
        "storage_path": str(run_dir / "storage"),
        "train.stop_after_rows": events,
    }
    if shared_broker:
        prefix = f"freshet-demo-{run_dir.name}"
        for kind in ("interactions", "items", "users"):
            settings[f"stream.{kind}_topic"] = f"{prefix}-{kind}"
    return settings
