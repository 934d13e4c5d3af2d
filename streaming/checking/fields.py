"""Fields of sampled records: their paths, how often they occur, what reads them, and which one may be meant."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from streaming.events.quoting import quoted
from streaming.events.schema import CATEGORIES, ITEM_ID, TIMESTAMP_MS, TITLE, USER_ID
from streaming.field_paths import Path, text_of_path

_DEEPEST = 3
_LIKE: dict[str, Sequence[str]] = {
    USER_ID: ("user", "visitor", "customer", "member", "account", "client"),
    ITEM_ID: ("item", "product", "sku", "article", "movie", "song", "content"),
    TIMESTAMP_MS: ("timestamp", "time", "occurred", "created", "date", "ts"),
    TITLE: ("title", "name", "label"),
    CATEGORIES: ("categor", "genre", "tag"),
}
_SECONDS_BELOW, _MS_BELOW, _US_BELOW = 1e11, 1e14, 1e17


def paths_in(objects: Iterable[Mapping[str, Any]]) -> dict[Path, list[Any]]:
    """The values of each field, by path; objects inside objects are entered, lists are not."""
    found: dict[Path, list[Any]] = {}
    for one in objects:
        _collect(one, (), found)
    return found


def table_of(objects: Sequence[Mapping[str, Any]], paths: Mapping[str, Path]) -> list[dict[str, Any]]:
    """A line per field: its path, the share of records that have it, an example, and which of ours reads it."""
    readers = {path: ours for ours, path in paths.items()}
    values = paths_in(objects)
    lines = []
    for path, found in sorted(values.items(), key=lambda item: -len(item[1])):
        ours = next((readers[path[:n]] for n in range(len(path), -1, -1) if path[:n] in readers), "")
        share = round(len(found) / max(1, len(objects)), 4)
        lines.append(
            {"field": text_of_path(path), "share": share, "example": quoted(found[0]), "read_as": ours}
        )
    return lines


def guess(name: str, objects: Sequence[Mapping[str, Any]]) -> str:
    """The path that most likely holds one of our fields, as a setting has it; empty if none looks like it."""
    best, most = "", 0
    for path, values in paths_in(objects).items():
        text = text_of_path(path)
        for place, word in enumerate(_LIKE.get(name, ())):
            if word in text.lower() and _fits(name, values[0]):
                score = 100 * len(values) // max(1, len(objects)) + 20 - place
                best, most = (text, score) if score > most else (best, most)
                break
    return best


def unit_of(values: Iterable[Any]) -> str:
    """The unit that most times are in, by their size; empty if there are none."""
    units = [unit for value in values if (unit := _unit(value))]
    return max(sorted(set(units)), key=units.count, default="")


def _unit(value: Any) -> str:
    if type(value) is str:
        return "iso8601"
    if type(value) not in (int, float) or not value > 0:
        return ""
    limits = (("s", _SECONDS_BELOW), ("ms", _MS_BELOW), ("us", _US_BELOW))
    return next((unit for unit, below in limits if value < below), "ns")


def _fits(name: str, value: Any) -> bool:
    if name == CATEGORIES:
        return type(value) in (list, str)
    if name == TITLE:
        return type(value) is str
    return type(value) in (int, str) or (name == TIMESTAMP_MS and type(value) is float)


def _collect(value: Mapping[str, Any], above: Path, found: dict[Path, list[Any]]) -> None:
    for key, inner in value.items():
        path = (*above, key)
        if type(inner) is dict and inner and len(path) < _DEEPEST:
            _collect(inner, path, found)
        elif inner is not None:
            found.setdefault(path, []).append(inner)
