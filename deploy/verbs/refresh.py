"""The verb `refresh`: the whole catalogue embedded again, published as an index version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from deploy.command.gates import gates_text
from deploy.command.options import CheckpointOption, ConfigOption, JsonOption, Overrides, settings
from deploy.command.output import plain, print_fields, write_json
from deploy.command.preflight import check_checkpoint, check_storage
from deploy.command.sigterm import ask_on_signals

if TYPE_CHECKING:
    from cluster.config import FreshetConfig

app = typer.Typer()


@app.command(epilog="**Example:** `freshet refresh --config runs/demo/latest/settings.yaml`")
def refresh(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    checkpoint: CheckpointOption = "",
) -> None:
    """Embed the whole catalogue again from a checkpoint, across the cluster, and publish it as a version.

    A version that fails a gate (recall, coverage, …) is refused: it is kept but not promoted, the live one stays, the
    reason is printed, and the status is 1.
    Ctrl-C ends it with status 130, SIGTERM with 143, and leaves the live version as it is.
    """
    result = run_refresh(settings(config, overrides), checkpoint)
    write_json(json, result)
    print_fields({**result, "gates": gates_text(result["gate"])} if "gate" in result else result)
    if "refused" in result:
        raise typer.Exit(1)


def run_refresh(config: FreshetConfig, checkpoint: str = "") -> dict[str, Any]:
    """Re-embed the catalogue from a checkpoint (the newest by default) and publish it as a version.

    Raises:
        NotACheckpoint, StorageUnusable: found before Ray starts.
        SystemExit: a signal came before there was a version.
    """
    from cluster.stop_request import StopRequest

    stop = StopRequest()
    with ask_on_signals(stop):
        check_storage(config)
        if checkpoint:
            check_checkpoint(checkpoint)
        from cluster.launching import launcher

        result = launcher.run_refresh(config, checkpoint or None, stop)
    if result is None:
        raise SystemExit(stop.status)
    refreshed: dict[str, Any] = plain(result)
    return refreshed
