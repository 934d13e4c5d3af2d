"""The verb `demo`."""

from __future__ import annotations

import typer

from deploy.command.options import taking
from deploy.demo.options import DemoOptions

app = typer.Typer()


@app.command(epilog="**Example:** `freshet demo --chaos --json demo.json`")
@taking(DemoOptions)
def demo(options: DemoOptions) -> None:
    """The whole loop on this machine: Kafka, a live stream, training, index versions, recommendations.

    Starts a local Apache Kafka, replays MovieLens-100k as a live stream, trains on it with two Ray Train
    workers, publishes index versions as it goes, counts that every event was trained exactly once,
    and recommends movies for three users. Takes two to four minutes on two cores.

    With `stream.bootstrap_servers=HOST:PORT` it uses that cluster instead of starting one. Ctrl-C ends it with status
    130, SIGTERM with 143, and stops what it has started.
    """
    from deploy.demo.demo import run_demo

    raise typer.Exit(run_demo(options))
