"""The command `freshet`: registers the verbs. Each verb has its heavy imports inside its function."""

from __future__ import annotations

import sys

import typer

from deploy.demo import verb as demo
from deploy.evaluate import verb as evaluate
from deploy.verbs import (
    broker,
    check,
    checkpoint_audit,
    checkpoints,
    data,
    dead_letters,
    index_versions,
    recommend,
    refresh,
    replay,
    settings,
    status,
    submit,
    train,
)

app = typer.Typer(
    name="freshet",
    help="Streaming training and index refresh for two-tower recommenders, on Ray.\n\n"
    "Start with `freshet demo`: the whole loop on real events, on this machine.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (demo, broker, check, train, replay, refresh, recommend, status, evaluate, settings):
    app.add_typer(verb.app)
app.add_typer(data.app, name="data")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(submit.app, name="submit")
checkpoints.app.add_typer(checkpoint_audit.app)
app.add_typer(checkpoints.app, name="checkpoint")
app.add_typer(index_versions.app, name="index")


def main() -> None:
    """Run the command line and exit with its status."""
    from deploy.command.terminal import guard_streams

    with guard_streams(sys.argv[1:]):
        try:
            app(prog_name="freshet")
        except Exception as error:
            from deploy.command.errors import report

            sys.exit(report(error))
