"""The verb `train`: checks settings and storage, then starts the workers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.command.options import ConfigOption, JsonOption, Overrides, TakeOverOption, settings
from deploy.command.output import plain, print_fields, write_json
from deploy.command.preflight import check_storage, check_stream
from deploy.command.sigterm import ask_on_signals
from retrieval.storage.location import absolute_location

if TYPE_CHECKING:
    from cluster.config import FreshetConfig

app = typer.Typer()


@app.command(epilog="**Example:** `freshet train storage_path=runs/movies train.checkpoint_every_s=30`")
def train(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    init_from: Annotated[
        str,
        typer.Option(
            "--init-from",
            metavar="PLACE",
            help="A checkpoint or a run's folder, or its URI, that a new run starts from: train.init_from=PLACE.",
            show_default=False,
        ),
    ] = "",
    from_: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="TIME",
            help="Where a new run starts to read: stream.from_time.",
            show_default=False,
        ),
    ] = "",
    until: Annotated[
        str,
        typer.Option(
            "--until",
            metavar="TIME",
            help="Where the run ends; without it, it continues live: stream.until_time.",
            show_default=False,
        ),
    ] = "",
    event_time: Annotated[
        bool, typer.Option("--event-time", help="--from and --until are event times, not broker times.")
    ] = False,
    parquet: Annotated[
        str,
        typer.Option(
            "--parquet",
            metavar="PATH",
            help="Read these event files instead of the topic: stream.parquet.",
            show_default=False,
        ),
    ] = "",
    take_over: TakeOverOption = False,
) -> None:
    """Train on the stream, commit checkpoints and publish index versions; resumes from the last checkpoint.

    Never ends on a live topic, unless `--until`, `train.stop_after_rows` or `train.bounded=true` sets an end.

    SIGTERM or Ctrl-C stops it: the step ends, a last checkpoint is committed, and the exit status is 0, or 1 if no
    checkpoint could be committed within `train.stop_within_s`. A second Ctrl-C ends it at once, with status 130.

    It is the entrypoint of the Ray job too:

    `ray job submit --working-dir . -- python -m deploy train storage_path=/shared/movies`
    """
    chosen = {
        "train.init_from": init_from,
        "stream.from_time": from_,
        "stream.until_time": until,
        "stream.time_axis": "event" if event_time else "",
        "stream.parquet": absolute_location(parquet),
    }
    start = [f"{name}={value}" for name, value in chosen.items() if value]
    summary = run_train(settings(config, [*(overrides or []), *start]), take_over=take_over)
    print_fields(summary)
    write_json(json, summary)


def run_train(config: FreshetConfig, *, take_over: bool = False) -> dict[str, Any]:
    """Train on the stream until it ends or a signal stops it; returns the summary as plain data.

    With `take_over`, a run that is alive on the same storage is evicted.

    Raises:
        BrokerUnavailable, TopicMissing, StorageUnusable: raised before Ray starts.
        SystemExit: with status 0, a signal came before the run began.
    """
    from cluster.stop_request import StopRequest
    from deploy.screen.display import Display
    from deploy.screen.follower import ProgressFollower
    from deploy.screen.screen import DemoView

    stop = StopRequest()
    with ask_on_signals(stop, status=0):
        check_storage(config)
        check_stream(config)
        from cluster.launching.launcher import run_training

        view = DemoView(title="Freshet training", planned=config.train.stop_after_rows)
        display = Display(view)
        # Ray prints to the same terminal, so plain lines are used here instead of panels.
        with ProgressFollower(Path(config.storage_path), display, stop):
            summary: dict[str, Any] = plain(run_training(config, stop, take_over=take_over).progress)
    return summary
