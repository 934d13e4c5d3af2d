"""The settings of one demo run, kept in its folder, so that every other verb can go on from there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.config_loading import load_config

if TYPE_CHECKING:
    from cluster.config import FreshetConfig

SETTINGS_FILE = "settings.yaml"
DEMO_DEFAULTS = ("train.workers=2",)


@dataclass
class DemoOptions:
    """What the command line of `freshet demo` says."""

    root: Path = Path("runs/demo")
    dataset: str = "ml-100k"
    events: int = 0
    seconds: float = 100.0
    partitions: int = 4
    chaos: bool = False
    stall_s: float = 180.0
    config_file: Path | None = None
    overrides: Sequence[str] = ()


def own_bootstrap_servers(options: DemoOptions) -> str:
    """The cluster that the user named in the file or the overrides; empty if none was named."""
    from omegaconf import OmegaConf

    layers = [OmegaConf.load(options.config_file)] if options.config_file else []
    named = OmegaConf.merge(*layers, OmegaConf.from_dotlist(list(options.overrides)))
    return str(OmegaConf.select(named, "stream.bootstrap_servers") or "")


def new_run_dir(root: Path) -> Path:
    """A folder of its own for each run, named by the time; `root/latest` points to it."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    root = root.absolute()
    root.mkdir(parents=True, exist_ok=True)
    for attempt in range(1000):
        run_dir = root / (stamp if attempt == 0 else f"{stamp}-{attempt}")
        try:
            run_dir.mkdir()
        except FileExistsError:
            continue
        _point_latest_at(run_dir)
        return run_dir
    raise FileExistsError(f"{root} has a thousand runs of this second (setting: --dir)")


def _point_latest_at(run_dir: Path) -> None:
    link = run_dir.parent / "latest"
    if link.is_symlink() or not link.exists():
        temporary = run_dir.parent / f".latest-{run_dir.name}"
        temporary.symlink_to(run_dir.name)
        temporary.replace(link)


def write_settings(options: DemoOptions, run_dir: Path, forced: Sequence[str]) -> FreshetConfig:
    """Merge the demo's defaults, the user's file, the user's overrides and what the run decides.

    Returns:
        The configuration as `freshet … --config RUN_DIR/settings.yaml` loads it.

    Raises:
        ConfigError: a setting is unknown or has a wrong value.
    """
    from omegaconf import OmegaConf

    merged = OmegaConf.merge(
        OmegaConf.from_dotlist(list(DEMO_DEFAULTS)),
        *([OmegaConf.load(options.config_file)] if options.config_file else []),
        OmegaConf.from_dotlist(list(options.overrides)),
        OmegaConf.from_dotlist(list(forced)),
    )
    path = run_dir / SETTINGS_FILE
    OmegaConf.save(merged, path)
    return load_config(path, [])


def run_overrides(run_dir: Path, bootstrap_servers: str, events: int, *, shared_broker: bool) -> list[str]:
    """What a run decides itself: its broker, its folder, where it ends.

    On somebody's existing cluster the topics get names of this run's own, so that nothing of theirs is read.
    """
    settings = [
        f"stream.bootstrap_servers='{bootstrap_servers}'",
        f"storage_path={run_dir / 'storage'}",
        f"train.stop_after_rows={events}",
    ]
    if shared_broker:
        prefix = f"freshet-demo-{run_dir.name}"
        settings += [f"stream.{kind}_topic={prefix}-{kind}" for kind in ("interactions", "items", "users")]
    return settings
