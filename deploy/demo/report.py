"""The end of a demo: figures, recommendations by title, and a command to continue with."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from rich.table import Table

from deploy.command.terminal import Terminal
from deploy.demo.figures import DemoFigures
from deploy.screen.screen import counted, number, rate, set_aside_text
from deploy.verbs.recommend import print_recommendations


def figure_rows(figures: DemoFigures) -> list[tuple[str, str]]:
    """Label and text of every figure, for the table."""
    f = figures
    ratio = f.progressive_hr10 / f.popularity_hr10 if f.popularity_hr10 else float("nan")
    return [
        ("broker", f.broker),
        (
            "events",
            f"{f.events_produced:,} produced, {f.events_trained:,} trained"
            f"{set_aside_text({'negatives': f.events_negative, 'ignored': f.events_ignored})}, {f.events_lost:,} lost, "
            f"{f.events_doubled:,} doubled, {counted(f.dead_letters, 'dead letter')}",
        ),
        (
            "training",
            f"{counted(f.steps, 'step')}, {counted(f.workers, 'worker')}, {number(f.examples_per_s)} examples/s, "
            f"{counted(f.restarts, 'restart')}",
        ),
        (
            "progressive HR@10",
            f"{rate(f.progressive_hr10)} ({number(ratio, 1)} × popularity {rate(f.popularity_hr10)}; "
            f"co-occurrence {rate(f.cooccurrence_hr10)})",
        ),
        ("  on", f"{f.progressive_sample:,} events of the second half, each scored before it was trained on"),
        (
            "served HR@10",
            f"{rate(f.served_hr10)} on {f.served_sample:,} of them, by the version that was live at the moment",
        ),
        (
            "index",
            f"{counted(f.index_versions, 'version')}, {f.index_kind}, {number(f.index_items)} items, "
            f"recall@10 {rate(f.index_recall)} at nprobe {f.index_nprobe} of {f.index_nlist}",
        ),
        (
            "freshness",
            f"p50 {number(f.freshness_p50_s, 1)} s, p99 {number(f.freshness_p99_s, 1)} s "
            "from append to servable by a version, over the run",
        ),
        (
            "  by deltas",
            f"p50 {number(f.delta_freshness_p50_s, 1)} s, p99 {number(f.delta_freshness_p99_s, 1)} s, "
            f"{counted(f.deltas, 'delta')}",
        ),
        *([("  new items", _new_items_text(f))] if f.new_items else []),
        ("time", f"{f.wall_s:.0f} s, of it {number(f.stream_s)} s of stream"),
    ]


def _new_items_text(f: DemoFigures) -> str:
    p50, longest = number(f.new_item_p50_s, 1), number(f.new_item_max_s, 1)
    return f"{f.new_items_recommended} of {f.new_items} could be recommended after p50 {p50} s, at most {longest} s"


def print_report(console: Terminal, figures: DemoFigures) -> None:
    """Print figures, recommendations, problems, where things are, and finally a command to continue with."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for row in figure_rows(figures):
        grid.add_row(*row)
    console.print()
    console.print(grid)
    for entry in figures.recommendations:
        print_recommendations(console, entry)
    console.print()
    run_dir = _short(Path(figures.run_dir))
    console.print(f"Results: {run_dir} (settings.yaml, demo.json, storage/, logs/)")
    for problem in figures.problems:
        console.print(f"Failed checks: {problem}", style="bold red")
    user = figures.recommendations[0]["user_id"] if figures.recommendations else 1
    console.print("Continue with:")
    settings = shlex.quote(str(run_dir / "settings.yaml"))
    # Alone on its line, unwrapped, with paths relative to this folder, so that it can be pasted.
    console.print(f"{program()} recommend --config {settings} --user {user}", style="bold", soft_wrap=True)


def program() -> str:
    """The way this command was called, for use in a shell: `freshet`, a path to it, or `python -m deploy`."""
    called = Path(sys.argv[0])
    if called.name != "freshet":
        return f"{shlex.quote(sys.executable)} -m deploy"
    found = shutil.which("freshet")
    on_path = found is not None and Path(found).absolute() == called.absolute()
    path = str(_short(called.absolute()))
    return "freshet" if on_path else shlex.quote(path if "/" in path else f"./{path}")


def _short(path: Path) -> Path:
    """The path, relative to the working directory if that is shorter."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
