"""The options that every verb takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cluster.config import FreshetConfig

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="YAML file of settings.", show_default=False)
]
JsonOption = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", help="Write the result here as JSON, atomically.", show_default=False
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings over those of the file, e.g. train.checkpoint_every_s=30. "
        "`freshet settings` lists them all.",
        show_default=False,
    ),
]
AddressOption = Annotated[
    str, typer.Option("--address", metavar="URL", help="The Ray cluster's job server (its dashboard).")
]


def settings(
    config_file: Path | None, overrides: list[str] | None, preset: str | None = None
) -> FreshetConfig:
    """The configuration of the file and the overrides, with `storage_path` absolute.

    Args:
        config_file: YAML.
        overrides: `key=value`, which win over the file.
        preset: name of a file of deploy/configs below both.

    Raises:
        ConfigError: a setting is unknown or has a wrong value.
    """
    from deploy.command.config_loading import load_config
    from deploy.command.preflight import absolute_storage

    presets = [Path(__file__).parents[1] / "configs" / f"{preset}.yaml"] if preset else []
    return absolute_storage(load_config(config_file, list(overrides or []), presets))
