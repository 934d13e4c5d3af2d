"""The verb `broker`: a local Apache Kafka in the foreground."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.command.errors import CommandError
from deploy.command.options import ConfigOption, JsonOption, Overrides, settings
from deploy.command.output import write_json
from deploy.command.sigterm import stop_on_signals
from deploy.command.terminal import say

if TYPE_CHECKING:
    from cluster.config import FreshetConfig
    from streaming.local_broker.config import BrokerConfig

POLL_S = 0.5

app = typer.Typer()


class BrokerDied(CommandError):
    """The local Kafka ended unexpectedly."""


@app.command(epilog="**Example:** `freshet broker --port 9092 --dir runs/broker`")
def broker(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    dir: Annotated[
        Path | None, typer.Option("--dir", help="Folder for its data.", show_default=False)
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port on 127.0.0.1; 0 = any free one.", show_default=False)
    ] = None,
    partitions: Annotated[int, typer.Option(help="Partitions of the topics that it creates; 0 = none.")] = 4,
) -> None:
    """A local Apache Kafka in the foreground, for trying things out; Ctrl-C or SIGTERM stops it, with status 0.

    Needs neither Java nor Maven: Java comes with the extra `broker`, and Kafka is downloaded once.
    """
    run_broker(settings(config, overrides), dir, port, partitions, json)


def broker_settings(config: FreshetConfig, data_dir: Path | None, port: int | None) -> BrokerConfig:
    """The `broker` settings of the configuration, overridden by options of the command line."""
    chosen = config.broker
    if data_dir is not None:
        chosen = replace(chosen, data_dir=str(data_dir))
    return chosen if port is None else replace(chosen, port=port)


def run_broker(
    config: FreshetConfig, data_dir: Path | None, port: int | None, partitions: int, json_path: Path | None
) -> None:
    """Start it, create the topics, and run until Ctrl-C or SIGTERM.

    The JSON file (`bootstrap_servers`, `pid`, `log`, `data_dir`) is written once it is ready.

    Raises:
        BrokerStartError, BrokerFetchError: it did not start.
        BrokerDied: it ended unexpectedly; names its log.
    """
    from streaming.kafka.topics import create_topics
    from streaming.local_broker.broker import LocalBroker

    broker = LocalBroker.from_config(broker_settings(config, data_dir, port), progress=_fetching)
    with stop_on_signals(status=0), broker:
        servers = broker.bootstrap_servers
        if partitions:
            create_topics(replace(config.stream, bootstrap_servers=servers), partitions)
        ready = {
            "bootstrap_servers": servers,
            "pid": broker.pid,
            "log": broker.log_path,
            "data_dir": broker.data_dir,
        }
        write_json(json_path, ready)
        say(f"Apache Kafka is ready: stream.bootstrap_servers={servers} (log: {broker.log_path})")
        say("Ctrl-C stops it.")
        while broker.running:
            time.sleep(POLL_S)
    raise BrokerDied(f"Apache Kafka on {servers} ended unexpectedly (log: {broker.log_path})")


def _fetching(done: int, total: int, name: str) -> None:
    say(f"fetching Apache Kafka: {done} of {total} files ({name})", to_stderr=True)
