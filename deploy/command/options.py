"""The options that several verbs take, and a verb's options as one dataclass."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

if TYPE_CHECKING:
    from cluster.config import FreshetConfig
    from cluster.evaluation.config import OfflineConfig

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
CheckpointOption = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        metavar="PLACE",
        help="Its folder or URI. Default: the newest one.",
        show_default=False,
    ),
]
TakeOverOption = Annotated[
    bool,
    typer.Option(
        "--take-over",
        help="Take over the storage from a run that is still alive; by default, that is an error.",
    ),
]
DatasetOption = Annotated[
    str, typer.Option("--dataset", help="`ml-100k`, or a folder with interactions.parquet.")
]
EventsOption = Annotated[int, typer.Option("--events", min=0, help="Only the first N events; 0 = all.")]
SecondsOption = Annotated[
    float, typer.Option("--seconds", min=0, help="Duration of the stream; 0 = as fast as possible.")
]

Options = TypeVar("Options")


def taking(kind: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Turn a function of one dataclass into a command whose parameters are the dataclass's fields.

    Args:
        kind: a dataclass; each field is `Annotated` with its Typer option, like a parameter.
    """

    def command_of(verb: Callable[[Options], None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            verb(kind(**values))

        types = get_type_hints(kind, include_extras=True)
        parameters = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=_default(field),
                annotation=types[field.name],
            )
            for field in fields(kind)  # type: ignore[arg-type]
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__name__, command.__doc__ = verb.__name__, verb.__doc__
        return command

    return command_of


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default


def settings(config_file: Path | None, overrides: list[str] | None) -> FreshetConfig:
    """The settings of a run, from the file and the overrides, with `storage_path` absolute.

    Args:
        config_file: YAML.
        overrides: `key=value`, which win over the file.

    Raises:
        ConfigError: a setting is unknown or has a wrong value.
    """
    from deploy.command.config_loading import load_config
    from deploy.command.preflight import absolute_storage

    return absolute_storage(load_config(config_file, list(overrides or [])))


def offline_settings(
    config_file: Path | None, overrides: list[str] | None, preset: str | None = None
) -> OfflineConfig:
    """As `settings`, with those of an offline evaluation.

    Args:
        config_file: YAML.
        overrides: `key=value`, which win over the file.
        preset: name of a file of deploy/configs below both.

    Raises:
        ConfigError: a setting is unknown or has a wrong value.
    """
    from deploy.command.config_loading import load_offline_config
    from deploy.command.preflight import absolute_storage

    presets = [Path(__file__).parents[1] / "configs" / f"{preset}.yaml"] if preset else []
    return absolute_storage(load_offline_config(config_file, list(overrides or []), presets))
