"""The verb `recommend`: recommendations by title, with the user's last items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from deploy.command.errors import UsageError
from deploy.command.options import ConfigOption, JsonOption, Overrides, settings
from deploy.command.output import write_json
from deploy.command.terminal import Terminal, line, stacked

if TYPE_CHECKING:
    from cluster.config import FreshetConfig

HISTORY_SHOWN = 3
_WATCHED_COLUMNS = 45

app = typer.Typer()


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
    """The top items for a user, by title, from the live index version and its deltas."""

    entries = entries_for(settings(config, overrides), user or [], history, k)
    write_json(json, entries)
    for entry in entries:
        print_recommendations(Terminal(), entry)


class RecommendsByTitle(Protocol):
    """The part of `cluster.serving.recommender.Recommender` that is used here."""

    def answer(
        self, user_id: int | str | None = None, history: Sequence[int | str] | None = None, k: int = 10
    ) -> Any:
        """The k best items for a known user, or for a history of item ids, oldest first; with version and delta."""

    def history_titles(self, user_id: int | str, n: int = 5) -> Sequence[str]:
        """Titles of the user's last n items, newest first."""


def recommend_to(config: FreshetConfig, user_ids: Sequence[int | str], k: int) -> list[dict[str, Any]]:
    """For each user: `user_id`, `watched_last` (titles), `version`, `delta`, and `items`, best first."""
    from cluster.serving.recommender import Recommender

    recommender = Recommender(config)
    return [user_entry(recommender, user_id, k) for user_id in user_ids]


def user_entry(recommender: RecommendsByTitle, user_id: int | str, k: int) -> dict[str, Any]:
    """One user's recommendations as plain data."""
    return {
        "user_id": user_id,
        "watched_last": list(recommender.history_titles(user_id, HISTORY_SHOWN)),
        **_answered(recommender.answer(user_id, k=k)),
    }


def history_entry(recommender: RecommendsByTitle, history: Sequence[int | str], k: int) -> dict[str, Any]:
    """Recommendations for a user given only by their items, oldest first."""
    return {
        "user_id": None,
        "watched_last": [f"item {item}" for item in history[: -HISTORY_SHOWN - 1 : -1]],
        **_answered(recommender.answer(history=list(history), k=k)),
    }


def _answered(answer: Any) -> dict[str, Any]:
    return {
        "version": answer.version,
        "delta": answer.delta,
        "items": [_item(item) for item in answer.items],
    }


def _item(item: Any) -> dict[str, Any]:
    return {
        "item_id": item.item_id,
        "title": item.title or f"item {item.item_id}",
        "score": float(item.score),
    }


def entries_for(config: FreshetConfig, user_ids: Sequence[str], history: str, k: int) -> list[dict[str, Any]]:
    """The output of `recommend`: one entry per user, and one for the history if there is one.

    Raises:
        UsageError: neither a user nor a history is given, or an id is invalid.
    """
    items = parse_history(history)
    users = [_id(user_id, "--user") for user_id in user_ids]
    if not user_ids and not items:
        raise UsageError("no user to recommend to: give --user ID or --history ID,ID,…")
    from cluster.serving.recommender import Recommender

    recommender = Recommender(config)
    entries = [user_entry(recommender, user_id, k) for user_id in users]
    return entries + ([history_entry(recommender, items, k)] if items else [])


def parse_history(text: str) -> list[int | str]:
    """Item ids from `50,181,sku-7`.

    Raises:
        UsageError: names the part that is not an id.
    """
    return [_id(part.strip(), "--history") for part in text.split(",") if part.strip()]


def _id(text: str, option: str) -> int | str:
    """An id as the stream reads it (`streaming.events.ids`): an integer if the text is one."""
    from streaming.events.ids import id_of_text

    try:
        number = id_of_text(text) if text else None
    except UnicodeEncodeError:
        number = None
    if number is None:
        raise UsageError(f"{option} has {text!r}, which is not an id (example: {option} 50)")
    return number if str(number) == text else text


def print_recommendations(console: Terminal, entry: dict[str, Any]) -> None:
    """Print one user's recommendations, with what they watched last above them."""
    from rich.table import Table

    from deploy.screen.screen import number

    whom = "this history" if entry["user_id"] is None else f"user {entry['user_id']}"
    table = Table(title=f"for {whom}", title_justify="left", title_style="bold", box=None)
    # On a narrow terminal, only titles are shortened.
    table.add_column("", justify="right", style="dim", no_wrap=True)
    table.add_column("recommended")
    table.add_column("score", justify="right", no_wrap=True)
    for place, item in enumerate(entry["items"], start=1):
        table.add_row(str(place), stacked([item["title"]], ellipsis=True), number(item["score"], 3))
    console.print()
    if entry.get("watched_last"):
        console.print("watched last: " + _titles(entry["watched_last"]), style="dim")
    console.print(table)
    if entry.get("version"):
        console.print(f"by {entry['version']}, delta {entry['delta']}", style="dim")


def _titles(titles: Sequence[str]) -> str:
    """Titles side by side, each cut if three would not fit on two lines."""
    texts = [line(title) for title in titles]
    for text in texts:
        text.truncate(_WATCHED_COLUMNS, overflow="ellipsis")
    return " · ".join(text.plain for text in texts)
