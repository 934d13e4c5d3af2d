"""Every figure of a run, declared once for `progress.json`, the screen, `freshet status` and metrics.

To add a counter, declare it here with `summed=True` and count it in `rank_figures`
(cluster/training/progress_report.py); ranks exchange it, progress.json holds it, and the screen shows it under
its label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from streaming.events.faults import FAULTS

Kind = Literal["counter", "gauge", "info"]

_FAULTS = "faults."
EXACT = "exact: among all items by the model in training"
SERVED = "served: by the live version, as users got it"


@dataclass(frozen=True)
class Figure:
    """One field of progress.json.

    Attributes:
        name: the field; a dot leads into an object.
        kind: a counter never falls within a run, a gauge may, an info is not a number to add up or compare.
        unit: of the value; empty for an info.
        help: one sentence.
        of: the type of a value that is not null.
        label: its name on the screen; empty if the screen does not show it.
        summed: every rank reports its share before each step, and rank 0 writes the sum; NaN is null in the file.
        set_aside: counts rows that were neither trained on nor dead letters; shown once there are any.
    """

    name: str
    kind: Kind
    unit: str
    help: str
    of: type = int
    label: str = ""
    summed: bool = False
    set_aside: bool = False


def _counter(
    name: str, unit: str, help: str, label: str = "", *, summed: bool = True, aside: bool = False
) -> Figure:
    return Figure(name, "counter", unit, help, int, label, summed, aside)


def _gauge(
    name: str, unit: str, help: str, label: str = "", *, of: type = float, summed: bool = False
) -> Figure:
    return Figure(name, "gauge", unit, help, of, label, summed)


def _info(name: str, help: str, label: str = "", *, of: type = str) -> Figure:
    return Figure(name, "info", "", help, of, label)


FIGURES: tuple[Figure, ...] = (
    _info("run_id", "Identifies the run; the attempts of one submission share it."),
    _counter("attempt", "groups", "Worker groups that the run has started.", "attempt", summed=False),
    _counter("restarts", "groups", "Worker groups that replaced a lost one.", "restarts", summed=False),
    _gauge("workers", "ranks", "Ranks of the worker group.", "workers", of=int),
    _info("pids", "Process ids of the ranks.", of=list),
    _info("state", "starting, training, finished or stopped.", "stage"),
    _gauge("time_s", "seconds since 1970", "When the file was written."),
    _counter(
        "step", "steps", "Optimizer steps, over all runs that the state comes from.", "step", summed=False
    ),
    _counter("rows_read", "rows", "Rows read from the stream, for any use.", "read"),
    _counter("events_trained", "events", "Positives that were trained on.", "trained", summed=False),
    _counter("events_negative", "events", "Explicit negatives.", "negatives", aside=True),
    _counter(
        "events_ignored", "events", "Events that are neither positive nor negative.", "ignored", aside=True
    ),
    _counter("events_duplicate", "events", "Duplicates by event_id.", "duplicates", aside=True),
    _counter(
        "events_quarantined", "events", "Events that could not be trained on.", "quarantined", aside=True
    ),
    _counter(
        "messages_skipped",
        "messages",
        "Messages removed by retention before they were read.",
        "skipped",
        aside=True,
    ),
    _counter("dead_letters", "rows", "Rows sent to the dead-letter topic.", "dead letters"),
    *(
        _counter(f"faults.{code}", "rows", f"Of this attempt: {fault.meaning}.", code)
        for code, fault in FAULTS.items()
    ),
    _gauge("lag_messages", "messages", "Messages that have not been read yet.", of=int, summed=True),
    _gauge(
        "lag_events",
        "events",
        "Estimate of the events that have not been read yet; null before the first message was decoded.",
        "lag",
        of=int,
        summed=True,
    ),
    _info("notice", "Something a person should know, such as a changed user attribute.", "message"),
    _info("error", "Why a checkpoint or a version cannot be written; empty when all is well."),
    _info("stop_error", "Why a run that was stopped has no last checkpoint."),
    _gauge("loss.total", "nats", "Weighted sum of the loss's terms in the last step.", "loss"),
    _gauge("loss.main", "nats", "The main loss in the last step.", "softmax"),
    _gauge("loss.mimic_user", "nats", "The user's mimic loss in the last step.", "mimic user"),
    _gauge("loss.mimic_item", "nats", "The item's mimic loss in the last step.", "mimic item"),
    _gauge(
        "loss.contrastive_sequence", "nats", "The sequence loss in the last step that took it.", "CL sequence"
    ),
    _gauge(
        "loss.contrastive_attribute",
        "nats",
        "The attribute loss in the last step that took it.",
        "CL attribute",
    ),
    _gauge("loss.contrastive_item", "nats", "The item loss in the last step that took it.", "CL item"),
    _gauge("examples_per_s", "events per second", "Over the last 10 seconds.", "examples/s"),
    _gauge("mean_examples_per_s", "events per second", "Since the first step of this attempt."),
    _gauge("known_items", "items", "Items of the catalogue.", "known items", of=int),
    _info("progressive.kind", "What the hit rates in `progressive` are."),
    _info("progressive.bin_events", "Width of a bin of the curve, in trained events.", of=int),
    _info("progressive.sample", "Scored events of each bin.", "HR@10", of=list),
    _info("progressive.hits", "Hits of the model in each bin.", "CL-EPIDTN", of=list),
    _info("progressive.popularity_hits", "Hits of streaming popularity in each bin.", "popularity", of=list),
    _info(
        "progressive.cooccurrence_hits",
        "Hits of streaming co-occurrence in each bin.",
        "co-occurrence",
        of=list,
    ),
    _info("served.kind", "What the hit rate in `served` is."),
    _info("served.version", "Version that answered last; null before the first answer.", "by"),
    _info("served.bin_events", "Width of a bin of the served curve, in trained events.", of=int),
    _info("served.sample", "Answered events of each bin, of rank 0.", "HR@10", of=list),
    _info("served.hits", "Hits of the live version in each bin.", "served", of=list),
    _counter(
        "served.dropped",
        "events",
        "Sampled events of rank 0 that the budget `progressive.served_cpu_share` left unanswered.",
        "dropped",
        summed=False,
    ),
    _gauge("checkpoint.step", "steps", "Step of the newest committed checkpoint.", "checkpoint", of=int),
    _info("checkpoint.path", "Location of the newest committed checkpoint."),
    _info("index.version", "Name of the live version.", "live"),
    _counter(
        "index.versions", "versions", "Versions that this run has published.", "published", summed=False
    ),
    _gauge("index.items", "items", "Items of the live version.", "items", of=int),
    _info("index.kind", "How the lists of the live version store vectors.", "published"),
    _gauge("index.nlist", "lists", "Inverted lists of the live version.", "nprobe", of=int),
    _gauge("index.nprobe", "lists", "Lists that a search of the live version reads.", "nprobe", of=int),
    _gauge("index.recall", "share", "Recall of the live version against exact search.", "recall@10"),
    _info("index.gate", "The gates that this run's last version passed or failed.", of=dict),
    _info("deltas.version", "Version of the newest delta; null before the first.", "deltas"),
    _gauge("deltas.number", "deltas", "Number of the newest delta of its version.", "newest", of=int),
    _gauge("deltas.age_s", "seconds", "Time since the newest delta was committed.", "age"),
    _counter("deltas.published", "deltas", "Deltas of this attempt.", "published", summed=False),
    _gauge("deltas.share", "share", "Items in the deltas of a version, as a share of its items.", "share"),
    _info("deltas.refresh", "Why the last full refresh was due: the clock, or a limit with its figure."),
    _info("deltas.problem", "Why no deltas are made at present; empty if they are.", "none at present"),
    _gauge("deltas.p50_s", "seconds", "Median time from append to servable by a delta, recently.", "p50"),
    _gauge("deltas.p99_s", "seconds", "99th percentile of the same.", "p99"),
    _gauge("deltas.run_p50_s", "seconds", "Median of the same, of the whole attempt.", "p50"),
    _gauge("deltas.run_p99_s", "seconds", "99th percentile of the same.", "p99"),
    _gauge("freshness.window_s", "seconds", "The time that p50_s and p99_s refer to.", "freshness"),
    _gauge("freshness.p50_s", "seconds", "Median time from append to servable, recently.", "p50"),
    _gauge("freshness.p99_s", "seconds", "99th percentile of the same.", "p99"),
    _gauge("freshness.run_p50_s", "seconds", "Median time from append to servable, of the whole run.", "p50"),
    _gauge("freshness.run_p99_s", "seconds", "99th percentile of the same.", "p99"),
)

BY_NAME: Mapping[str, Figure] = {figure.name: figure for figure in FIGURES}
SUMMED: tuple[str, ...] = tuple(figure.name for figure in FIGURES if figure.summed)
"""Names of the figures that ranks exchange."""
LOSS_TERMS: Mapping[str, str] = {
    figure.name.removeprefix("loss."): figure.label for figure in FIGURES if figure.name.startswith("loss.")
}
"""Key in `loss` to label; the total first."""


def rows_set_aside(record: Mapping[str, Any]) -> dict[str, int]:
    """Counts, by label, of rows that were neither trained on nor dead letters, from a record of progress.json."""
    return {f.label: int(record[f.name]) for f in FIGURES if f.set_aside and record.get(f.name)}


def scalars(record: Mapping[str, Any]) -> dict[str, Any]:
    """The top-level numbers and texts of a record that are not null, each in its declared type."""
    return {
        figure.name: figure.of(record[figure.name])
        for figure in FIGURES
        if figure.of in (int, float, str) and record.get(figure.name) is not None
    }


def summed_record(totals: Mapping[str, float]) -> dict[str, Any]:
    """The sums over all ranks for progress.json: whole numbers; null if a rank does not know its share."""
    whole = {name: None if totals[name] != totals[name] else round(totals[name]) for name in SUMMED}
    faults = {name.removeprefix(_FAULTS): whole.pop(name) for name in SUMMED if name.startswith(_FAULTS)}
    return {**whole, "faults": faults}
