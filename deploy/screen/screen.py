"""The demo's screen: one view of what happens, as panels for a terminal and as lines for a log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.cells import cell_len
from rich.console import ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table

from cluster.observability.figures import BY_NAME, EXACT, LOSS_TERMS, SERVED
from deploy.command.gates import verdict_text
from deploy.command.terminal import line, panel, stacked
from deploy.command.times import duration
from deploy.screen.progress import Progress, ServedCurve

SPARKS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 48
MESSAGES_SHOWN = 7
FAULTS_SHOWN = 3


@dataclass
class DemoView:
    """Everything that the screen shows at one moment."""

    title: str = "Freshet demo"
    stage: str = "starting"
    elapsed_s: float = 0.0
    produced: int | None = None
    """None if this command does not produce events."""
    planned: int = 0
    progress: Progress = field(default_factory=Progress)
    new_item: str = ""
    """When the last item that appeared in the stream could be recommended; empty if none is watched."""
    messages: list[str] = field(default_factory=list)


def sparkline(values: Sequence[float], low: float, high: float) -> str:
    """One character per value between `low` and `high`; a blank where a value is NaN."""
    span = (high - low) or 1.0
    return "".join(
        " " if math.isnan(v) else SPARKS[min(7, max(0, int((v - low) / span * 8)))] for v in values
    )


def number(value: float | None, digits: int = 0) -> str:
    """A figure for people: thousands separated, a dash if it is not known yet."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.{digits}f}"


def counted(count: int, noun: str) -> str:
    """`1 worker`, `2,000 workers`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def rate(value: float | None, digits: int = 3) -> str:
    """A share such as a hit rate or a recall, without a leading zero: `.097`."""
    text = number(value, digits)
    return text.removeprefix("0") if text.startswith("0.") else text


def set_aside_text(counts: Mapping[str, int]) -> str:
    """Counts of rows set aside, by name, to append to other counts; empty if there are none."""
    return "".join(f", {count:,} {name}" for name, count in counts.items() if count)


def _grid(rows: Iterable[Sequence[RenderableType]], justify: Sequence[str] = ("left", "right")) -> Table:
    rows = list(rows)
    grid = Table.grid(padding=(0, 1))
    names = max(cell_len(row[0]) for row in rows if isinstance(row[0], str))
    for column in range(len(rows[0])):
        right = column < len(justify) and justify[column] == "right"
        # A long value is cut, its name never is.
        grid.add_column(
            justify="right" if right else "left", no_wrap=True, min_width=None if column else names
        )
    for row in rows:
        grid.add_row(*row)
    return grid


def _stream_panel(view: DemoView) -> RenderableType:
    progress, total = view.progress, max(view.planned, 1)
    counts = {_label("rows_read"): progress.rows_read, _label("events_trained"): progress.events_trained}
    if view.produced is not None:
        counts = {"produced": view.produced, **counts}
    bars: list[tuple[RenderableType, ...]] = [
        (name, number(count), ProgressBar(total, min(count, total), width=14))
        for name, count in counts.items()
    ]
    rows = [
        *bars,
        *((name, number(count), "") for name, count in progress.set_aside.items() if count),
        (_label("lag_events"), _about(progress.lag_events), BY_NAME["lag_events"].unit),
        (_label("dead_letters"), number(progress.dead_letters), ""),
        (_label("known_items"), number(progress.known_items), ""),
    ]
    return panel(_grid(rows), "stream")


def _label(name: str) -> str:
    return BY_NAME[name].label


def _about(events: int | None) -> str:
    """The lag as an estimate; zero is exact."""
    return f"{'~' if events else ''}{number(events)}"


def _training_panel(progress: Progress) -> RenderableType:
    total, *terms = ((label, number(progress.loss.get(name), 3)) for name, label in LOSS_TERMS.items())
    names = ("examples_per_s", "step", "workers", "attempt", "restarts")
    counts = [total, *((_label(name), number(getattr(progress, name))) for name in names)]
    rows = [(*count, "", *term) for count, term in zip(counts, terms, strict=True)]
    return panel(_grid(rows, ("left", "right", "left", "left", "right")), "training, and the loss's terms")


def _curve_panel(view: DemoView) -> RenderableType:
    curve, served = view.progress.progressive, view.progress.served
    series = [
        (_label("progressive.hits"), "bold green", curve, curve.hits),
        (_label("progressive.cooccurrence_hits"), "yellow", curve, curve.cooccurrence_hits),
        (_label("progressive.popularity_hits"), "red", curve, curve.popularity_hits),
        (f"{_label('served.hits')} {_short(served.version)}".strip(), "cyan", served, served.hits),
    ]
    points = [of.points(hits, CURVE_WIDTH) for _, _, of, hits in series]
    # One scale for all, so that the curves can be compared.
    top = max((p for of_one in points for p in of_one if not math.isnan(p)), default=1.0)
    rows = [
        (name, rate(of.rate(hits)), line(sparkline(curve_points, 0.0, top), style=style))
        for (name, style, of, hits), curve_points in zip(series, points, strict=True)
    ]
    return panel(
        _grid(rows),
        f"HR@10 on {curve.sample_size():,} events, {EXACT}",
        f"on {served.sample_size():,} events, {SERVED}",
    )


def served_text(served: ServedCurve) -> str:
    """Hit rate, sample, version and what the budget left out."""
    if not served.version:
        return "nothing yet"
    left_out = f"; {served.dropped:,} more not answered" if served.dropped else ""
    sample = counted(served.sample_size(), "event")
    return f"{rate(served.rate(served.hits))} on {sample}, last by {served.version}{left_out}"


def index_text(progress: Progress) -> str:
    """The live index version: its name, size and recall."""
    index = progress.index
    if not progress.index_version:
        return "no version yet"
    probes = f"nprobe {index.get('nprobe', '–')} of {index.get('nlist', '–')}"
    items, recall = number(index.get("items")), rate(index.get("recall"))
    return f"{_short(index['version'])}, {items} items, recall@10 {recall} ({probes})"


def _short(version: str) -> str:
    """`v6` of `v00000006`; empty if there is none."""
    digits = "".join(c for c in version if c.isdigit())
    return f"v{int(digits)}" if digits else ""


def deltas_text(progress: Progress) -> str:
    """The newest delta of the live version, its age, and how many were made."""
    deltas = progress.deltas
    if deltas.get("problem"):
        return f"none at present: {deltas['problem']}"
    if not deltas.get("version"):
        return "none yet"
    newest = f"d{int(deltas.get('number') or 0)} of {_short(str(deltas['version']))}"
    age, share = number(deltas.get("age_s"), 1), rate(deltas.get("share"))
    return f"{newest}, {age} s old, {share} of its items; {int(deltas.get('published') or 0):,} in all"


def freshness_text(figures: Mapping[str, Any], window_s: float | None = None) -> str:
    """From the broker's append to servable, in seconds: in the last minutes, and since the start.

    Args:
        figures: `freshness` (of versions) or `deltas` of a record.
        window_s: of the last minutes, unless it is among the figures.
    """
    minutes = float(figures.get("window_s") or window_s or 300.0) / 60
    late = _percentiles(figures.get("p50_s"), figures.get("p99_s"))
    whole = _percentiles(figures.get("run_p50_s"), figures.get("run_p99_s"))
    return f"{late} in {minutes:.0f} min, {whole} since the start"


def _percentiles(p50_s: float | None, p99_s: float | None) -> str:
    p50, p99 = (number(value, 0 if (value or 0) >= 100 else 1) for value in (p50_s, p99_s))
    return f"p50 {p50} p99 {p99} s"


def faults_text(progress: Progress) -> str:
    """Counts of what was wrong with data in this attempt, by code, the most frequent first; empty if nothing was."""
    found = sorted(((code, n) for code, n in progress.faults.items() if n), key=lambda fault: -fault[1])
    shown = [f"{code} {n:,}" for code, n in found[:FAULTS_SHOWN]]
    more = [f"{len(found) - FAULTS_SHOWN} more"] if len(found) > FAULTS_SHOWN else []
    return ", ".join(shown + more)


def lag_text(progress: Progress) -> str:
    """How many events wait to be read, as far as is known."""
    lag = progress.lag_events
    return "lag not yet known" if lag is None else f"lag {'about ' if lag else ''}{lag:,} events"


def _index_title(progress: Progress) -> str:
    """With the verdict of the gates on this run's last version."""
    verdict = verdict_text((progress.index.get("gate") or {}).get("checks") or ())
    return f"index ({verdict}), from append to servable" if verdict else "index, from append to servable"


def _index_panel(view: DemoView) -> RenderableType:
    progress = view.progress
    step = progress.checkpoint_step
    window_s = progress.freshness.get("window_s")
    rows = [
        ("live", index_text(progress)),
        ("newest", deltas_text(progress)),
        ("versions", freshness_text(progress.freshness)),
        ("deltas", freshness_text(progress.deltas, window_s)),
        *([("new item", view.new_item)] if view.new_item else []),
    ]
    published = f"{counted(progress.index_versions, 'version')}, {progress.index.get('kind') or '–'}"
    checkpoint = "none yet" if step is None else f"step {step:,}"
    return panel(
        _grid(rows, ("left", "left")),
        _index_title(progress),
        f"{published}; checkpoint: {checkpoint}",
    )


def render(view: DemoView) -> RenderableType:
    """The whole screen: 80 columns wide, with as many of the newest messages as the terminal has lines for."""
    head = line((view.title, "bold"), f"  {view.stage}  ", (duration(view.elapsed_s), "dim"))
    top = Table.grid(expand=True)
    top.add_column(ratio=1)
    top.add_column(ratio=1)
    top.add_row(_stream_panel(view), _training_panel(view.progress))
    parts = [head, top, _curve_panel(view), _index_panel(view)]
    if faults := faults_text(view.progress):
        parts.append(line(("faults ", "bold"), faults))
    return _Screen(Group(*parts), tuple(view.messages))


@dataclass(frozen=True)
class _Screen:
    """Panels, and below them what has happened. A screen that were too high would lose its newest line."""

    panels: RenderableType
    messages: Sequence[str]

    def __rich_console__(self, console: Any, options: ConsoleOptions) -> RenderResult:
        yield self.panels
        room = options.max_height - len(console.render_lines(self.panels, options, pad=False))
        if shown := self.messages[-min(room, MESSAGES_SHOWN) :] if room > 0 else ():
            yield stacked(shown, "dim", ellipsis=True)


def plain_line(view: DemoView) -> str:
    """The same figures as one line, for a log or a pipe."""
    progress, curve, served = view.progress, view.progress.progressive, view.progress.served
    parts = [
        view.stage,
        ("" if view.produced is None else f"produced {view.produced:,} ")
        + f"read {progress.rows_read:,} trained {progress.events_trained:,}"
        + set_aside_text(progress.set_aside),
        lag_text(progress),
        f"loss {number(progress.loss.get('total'), 3)}",
        f"{number(progress.examples_per_s)} examples/s",
        f"HR@10 {rate(curve.rate(curve.hits))} (popularity {rate(curve.rate(curve.popularity_hits))}, "
        f"co-occurrence {rate(curve.rate(curve.cooccurrence_hits))}), "
        f"served {rate(served.rate(served.hits))} ({served.dropped:,} dropped)",
        f"index {index_text(progress)}",
        f"fresh {freshness_text(progress.freshness)}",
        f"deltas {deltas_text(progress)}",
        f"fresh by deltas {freshness_text(progress.deltas, progress.freshness.get('window_s'))}",
    ]
    if faults := faults_text(progress):
        parts.append(f"faults {faults}")
    if progress.restarts:
        parts.append(f"restarts {progress.restarts}")
    return " | ".join(parts)
