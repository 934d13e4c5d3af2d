"""The verb `replay`: sends a data set to Kafka as a live stream."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deploy.command.options import (
    ConfigOption,
    DatasetOption,
    JsonOption,
    Overrides,
    settings,
)
from deploy.command.output import print_fields, write_json
from deploy.command.sigterm import stop_on_signals
from deploy.command.terminal import Terminal, line

if TYPE_CHECKING:
    from cluster.config import FreshetConfig
    from streaming.producing.producer import Wire

app = typer.Typer()


@app.command(epilog="**Example:** `freshet replay --dataset ml-100k --seconds 60`")
def replay(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    dataset: DatasetOption = "ml-100k",
    seconds: Annotated[
        float, typer.Option(min=0, help="Duration of the stream; 0 = as fast as possible.")
    ] = 0,
    events: Annotated[int, typer.Option(min=0, help="Only the first N events; 0 = all.")] = 0,
    partitions: Annotated[
        int, typer.Option(min=1, help="Of the interactions topic, if it has to be created.")
    ] = 4,
    wire: Annotated[
        Literal["arrow", "json"], typer.Option(help="Many events per message, or one.")
    ] = "arrow",
) -> None:
    """Send a data set into Kafka as a live stream: events in time order, items and users before them.

    Ctrl-C ends it with status 130, SIGTERM with 143.
    """
    with stop_on_signals():
        result = run_replay(
            settings(config, overrides), dataset, seconds, events, partitions, wire, Terminal()
        )
    write_json(json, result)
    print_fields(result)


def run_replay(
    config: FreshetConfig,
    name_or_folder: str,
    seconds: float,
    events: int,
    partitions: int,
    wire: Wire,
    console: Terminal,
) -> dict[str, Any]:
    """Create missing topics, publish items and users, then send the events.

    Returns:
        `dataset`, `topic`, `events_produced`, `items`, `users`, and the fields of `streaming.producing.replay`.
    Raises:
        BrokerUnavailable, TopicError: the cluster does not answer or cannot accept the data.
    """
    from deploy.datasets.choosing import fetch_dataset, first_events
    from streaming.kafka.topics import create_topics
    from streaming.producing.catalogue import publish_catalogue
    from streaming.producing.replay import replay

    # The broker first: without one, do not download a data set.
    create_topics(config.stream, partitions)
    dataset = first_events(fetch_dataset(name_or_folder, console.print, config.stream), events)
    catalogue = publish_catalogue(config.stream, dataset.items, dataset.users)
    total = dataset.interactions.num_rows
    with console.status(line("replaying")) as spinner:
        sent = replay(
            config.stream,
            dataset,
            duration_s=seconds,
            wire=wire,
            seed=config.seed,
            progress=lambda done: spinner.update(line(f"replaying: {done:,} of {total:,} events")),
        )
    return {
        "dataset": name_or_folder,
        "topic": config.stream.interactions_topic,
        "events_produced": sent.events,
        **catalogue._asdict(),
        **asdict(sent),
    }
