"""Plots of an evaluation, drawn by matplotlib without a display: bars for models, lines over a swept setting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.command.errors import CommandError
from deploy.command.output import whole_file
from deploy.screen.screen import rate

if TYPE_CHECKING:
    from cluster.evaluation.grids.summary import Row

PANELS = {"hr@10": "HR@10", "hr@50": "HR@50", "ndcg@10": "NDCG@10"}
_REFERENCE_COLOUR, _OTHER_COLOUR = "#1f4e79", "#9db8d2"


class PlotUnavailable(CommandError):
    """matplotlib is not installed."""


def require_matplotlib() -> None:
    """Check before training that plots can be drawn.

    Raises:
        PlotUnavailable: names the extra to install.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        raise PlotUnavailable(
            f"{error.name} is not installed; plots need the extra: pip install 'freshet[evaluation]'"
        ) from error


def draw(rows: Sequence[Row], title: str, folder: Path) -> list[Path]:
    """`results.png` for models without a sweep, `sweep-KEY.png` for each swept setting; returns what was drawn."""
    paths = []
    plain = [row for row in rows if not row.point]
    if plain:
        paths.append(_save(_bars(plain, title), folder / "results.png"))
    for key in dict.fromkeys(key for row in rows for key in row.point):
        swept = [row for row in rows if key in row.point]
        paths.append(_save(_lines(swept, key, title), folder / f"sweep-{key}.png"))
    return paths


def _bars(rows: Sequence[Row], title: str) -> Any:
    """A panel per metric, a bar per model with its standard deviation over seeds."""
    from cluster.evaluation.systems.systems import REFERENCE, SYSTEMS

    figure, panels = _panels(title, 1.2 + 0.32 * len(rows))
    colours = [_REFERENCE_COLOUR if row.system == REFERENCE else _OTHER_COLOUR for row in rows]
    names = [SYSTEMS[row.system].title for row in rows]
    for axes, (metric, heading) in zip(panels, PANELS.items(), strict=True):
        means, deviations = ([f(row) for row in rows] for f in _mean_and_std(metric))
        bars = axes.barh(names, means, color=colours)
        if any(row.seeds > 1 for row in rows):
            axes.errorbar(means, names, xerr=deviations, fmt="none", ecolor="black", elinewidth=1, capsize=2)
        axes.bar_label(bars, [rate(mean, 4) for mean in means], padding=6, fontsize="small")
        axes.margins(x=0.16)
        axes.set_title(heading)
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(labelleft=axes is panels[0])
        axes.invert_yaxis()  # the first model on top
    return figure


def _lines(rows: Sequence[Row], key: str, title: str) -> Any:
    """A panel per metric, a line per model over the swept values, in the order of the sweep."""
    from cluster.evaluation.systems.systems import SYSTEMS

    figure, panels = _panels(title, 3.4)
    values = list(dict.fromkeys(str(row.point[key]) for row in rows))
    for axes, (metric, heading) in zip(panels, PANELS.items(), strict=True):
        mean, deviation = _mean_and_std(metric)
        for name in dict.fromkeys(row.system for row in rows):
            of_model = [row for row in rows if row.system == name]
            axes.errorbar(
                [values.index(str(row.point[key])) for row in of_model],
                [mean(row) for row in of_model],
                yerr=[deviation(row) for row in of_model],
                marker="o",
                capsize=3,
                label=SYSTEMS[name].title,
            )
        axes.set_xticks(range(len(values)), values)
        axes.set_xlabel(key)
        axes.set_title(heading)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    return figure


def _mean_and_std(metric: str) -> tuple[Any, Any]:
    return (lambda row: row.mean(metric)), (lambda row: row.std(metric))


def _panels(title: str, height: float) -> tuple[Any, Any]:
    require_matplotlib()
    # Not pyplot, which would look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    return figure, figure.subplots(1, len(PANELS))


def _save(figure: Any, path: Path) -> Path:
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return path
