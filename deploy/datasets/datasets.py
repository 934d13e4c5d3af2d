"""Data sets for the demo and for replays: fetched from a package registry, kept in a cache, read as Arrow.

A data set is a folder with `interactions.parquet`, `items.parquet` and `users.parquet` (both optional), and
`meta.json`, which has the source's terms. Fetched data are never part of the project.
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

from deploy.datasets.columns import DatasetFile, Say, decoded, is_list, whole_numbers, without_empty
from deploy.datasets.fetching import DatasetError, FetchProgress, default_cache_dir, fetch_ml_100k
from model.reserved_memory import machine_bytes
from streaming.codecs.parquet_limits import RowGroupTooLarge, read_row_group
from streaming.config import StreamConfig
from streaming.events.schema import (
    ACTION,
    ATTRIBUTES,
    CATEGORIES,
    ITEM_ID,
    TIMESTAMP_MS,
    TITLE,
    USER_ID,
    VALUE,
)

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
        interactions: user_id, item_id (int64), timestamp_ms (int64), and optionally action (string), value (float32)
            and pos (int32: the order of a user's events with equal times).
        items: item_id, title (string), categories (list of strings); zero rows if the data set has none.
        users: user_id and one string column per attribute; zero rows if the data set has none.
        meta: the content of meta.json (source, terms).
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
        progress: called with a sentence about each step.
    Raises:
        DatasetError: unknown name, or it could not be fetched.
    """
    if name not in FETCHERS:
        raise DatasetError(
            f"No data set is called {name!r}: choose one of {', '.join(FETCHERS)}, or give a folder."
        )
    folder = (Path(cache_dir) if cache_dir else default_cache_dir()) / name
    if not (folder / "meta.json").is_file():
        FETCHERS[name](folder, progress or (lambda sentence: None))
    return folder


def load(
    folder: str | Path,
    say: Say = lambda sentence: None,
    *,
    most_bytes: int = StreamConfig.max_row_group_bytes,
) -> Dataset:
    """Reads a data set from a folder.

    Events without a user, an item or a time are left out, as are rows of items.parquet and users.parquet without an id;
    the last row of an id wins. The numbers of rows left out are reported.

    Args:
        folder: with interactions.parquet.
        say: called with a sentence about rows left out and values that look wrong.
        most_bytes: maximum decoded size of a row group (`stream.max_row_group_bytes`).
    Raises:
        DatasetError: there is no interactions.parquet, a required column is missing, empty or of a wrong type, or a
            file decodes to more than allowed or more than half of this machine's memory.
    """
    folder = Path(folder)
    meta = _meta(folder / "meta.json")
    interactions = _read(folder / "interactions.parquet", (USER_ID, ITEM_ID), say, most_bytes)
    if interactions is None:
        raise DatasetError(f"{folder} has no interactions.parquet: give the folder of a data set.")
    items = _read(folder / "items.parquet", (ITEM_ID,), say, most_bytes)
    users = _read(folder / "users.parquet", (USER_ID,), say, most_bytes)
    return Dataset(
        str(meta.get("name", folder.name)),
        _interactions(interactions),
        _items(items, meta.get("category_names")) if items is not None else _no_items(),
        _users(users) if users is not None else pa.table({USER_ID: pa.array([], pa.int64())}),
        meta,
    )


def _meta(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    if not isinstance(meta, dict):
        raise DatasetError(f"{path} must hold an object, found {type(meta).__name__}")
    return meta


def _read(path: Path, needed: Sequence[str], say: Say, most_bytes: int) -> DatasetFile | None:
    if not path.is_file():
        return None
    try:
        table = _read_bounded(path, most_bytes)
    except (pa.ArrowException, RowGroupTooLarge, OSError) as error:
        raise DatasetError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if missing := [name for name in needed if name not in table.column_names]:
        raise DatasetError(
            f"{path} has no column {', '.join(missing)} (it has {', '.join(table.column_names)})"
        )
    return DatasetFile(path, table, say)


def _read_bounded(path: Path, most_bytes: int) -> pa.Table:
    """Reads a file by row groups, so that declared sizes and repetitions are checked before they are in memory."""
    with pq.ParquetFile(path) as opened:
        groups, empty = opened.metadata.num_row_groups, opened.schema_arrow.empty_table()
    room = machine_bytes() // 2
    tables = [empty]
    for group in range(groups):
        tables.append(read_row_group(path, group, most_bytes))
        room -= tables[-1].nbytes
        if room < 0:
            raise DatasetError(
                f"{path} decodes to more than half of this machine's {machine_bytes() / 2**30:.1f} GiB of memory "
                f"(row group {group} of {groups}): use a part of it, or a larger machine"
            )
    return pa.concat_tables(tables)


def _interactions(file: DatasetFile) -> pa.Table:
    names = file.names
    columns = {USER_ID: file.ids(USER_ID), ITEM_ID: file.ids(ITEM_ID), TIMESTAMP_MS: file.times()}
    if ACTION in names:
        columns[ACTION] = file.as_type(ACTION, pa.string())
    if value := next((name for name in (VALUE, "rating") if name in names), None):
        columns[VALUE] = file.as_type(value, pa.float32())
    needed = [USER_ID, ITEM_ID, TIMESTAMP_MS]
    if POS in names:
        columns[POS] = file.as_type(POS, pa.int32())
        needed.append(POS)
    return file.complete_rows(columns, needed)


def _no_items() -> pa.Table:
    empty = [pa.array([], kind) for kind in (pa.int64(), pa.string(), pa.list_(pa.string()))]
    return pa.table(empty, names=[ITEM_ID, TITLE, CATEGORIES])


def _items(file: DatasetFile, category_names: Sequence[str] | None) -> pa.Table:
    columns = {
        ITEM_ID: file.ids(ITEM_ID),
        TITLE: _titles(file),
        CATEGORIES: _categories(file, category_names),
    }
    return file.last_of_each(file.complete_rows(columns, [ITEM_ID]), ITEM_ID)


def _titles(file: DatasetFile) -> pa.ChunkedArray:
    if TITLE in file.names:
        return file.as_type(TITLE, pa.string())
    if "movie_title" not in file.names:
        return pa.chunked_array([pa.nulls(file.table.num_rows, pa.string())])
    titles = file.as_type("movie_title", pa.string())
    if "release_year" not in file.names:
        return titles
    years = file.as_type("release_year", pa.string())
    with_years = pc.binary_join_element_wise(titles, pc.binary_join_element_wise("(", years, ")", ""), " ")
    return pc.if_else(pc.fill_null(pc.match_substring_regex(years, r"^\d{4}$"), False), with_years, titles)


def _categories(file: DatasetFile, names: Sequence[str] | None) -> pa.ChunkedArray:
    """Lists of names: `categories`, else `attributes` (numbers), `genres`, `category` and the like."""
    if CATEGORIES in file.names:
        return _listed(file, CATEGORIES)
    if ATTRIBUTES in file.names:
        return pa.chunked_array([_named_attributes(file.as_type(ATTRIBUTES, pa.list_(pa.int64())))])
    if "genres" in file.names:
        return _listed(file, "genres")
    columns = [n for n in ("category", "subcategory", "category_l1", "brand") if n in file.names]
    values = [without_empty(whole_numbers(decoded(file.table[n]))).to_pylist() for n in columns]
    rows = zip(*values, strict=True) if columns else [()] * file.table.num_rows
    lists = [
        [_category_name(n, v, names) for n, v in zip(columns, row, strict=True) if v is not None]
        for row in rows
    ]
    return pa.chunked_array([pa.array(lists, pa.list_(pa.string()))])


def _listed(file: DatasetFile, name: str) -> pa.ChunkedArray:
    """A column of lists, or of texts with bars between the names; `genres` without bars are split at spaces."""
    column = decoded(file.table[name])
    if is_list(column.type):
        lists = file.as_type(name, pa.list_(pa.string())).combine_chunks()
        return pa.chunked_array([_without_absent(lists)])
    texts = file.as_type(name, pa.string())
    if name == CATEGORIES and not any("|" in text for text in texts.to_pylist() if text):
        one_each = [[text] if text else [] for text in texts.to_pylist()]
        return pa.chunked_array([pa.array(one_each, pa.list_(pa.string()))])
    return pa.chunked_array([_split_genres(texts)])


def _without_absent(lists: pa.ListArray) -> pa.ListArray:
    values = lists.flatten()
    known = pc.fill_null(pc.not_equal(values, ""), False)
    if pc.all(known).as_py() is not False:
        return lists
    row = np.asarray(pc.list_parent_indices(lists).filter(known))
    return _lists_of(values.filter(known), row, len(lists))


def _named_attributes(lists: pa.ChunkedArray) -> pa.ListArray:
    lists = lists.combine_chunks()
    numbers = lists.flatten()
    known = pc.is_valid(numbers)
    row = np.asarray(pc.list_parent_indices(lists).filter(known))
    names = pc.binary_join_element_wise("attribute", numbers.filter(known).cast(pa.string()), " ")
    return _lists_of(names, row, len(lists))


def _lists_of(values: pa.Array, row: np.ndarray, rows: int) -> pa.ListArray:
    counts = np.bincount(row, minlength=rows)
    return pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32), values)


def _split_genres(genres: pa.ChunkedArray) -> pa.Array:
    texts = [text or "" for text in genres.to_pylist()]
    # One separator per data set (ml-1m: bars, ml-100k: spaces), so that names may contain the other one.
    separator = "|" if any("|" in text for text in texts) else " "
    return pa.array([[g for g in text.split(separator) if g] for text in texts], pa.list_(pa.string()))


def _category_name(column: str, value: Any, names: Sequence[str] | None) -> str:
    if column == "category" and names is not None and isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return f"{column} {value}"


def _users(file: DatasetFile) -> pa.Table:
    columns = {USER_ID: file.ids(USER_ID)}
    if "age" in file.names:
        ages = file.as_type("age", pa.float64()).to_pylist()
        columns["age_group"] = pa.chunked_array([pa.array([_age_group(age) for age in ages], pa.string())])
    for name in file.names:
        if name in NOT_ATTRIBUTES:
            continue
        if pa.types.is_nested(decoded(file.table[name]).type):
            file.say(f"{file.path}: column {name} is left out: {file.table[name].type} is not an attribute")
            continue
        columns[name] = file.as_type(name, pa.string())
    return file.last_of_each(file.complete_rows(columns, [USER_ID]), USER_ID)


def _age_group(age: float | None) -> str | None:
    if age is None or age < 0:
        return None
    return [group for group, start in zip(AGE_GROUPS, AGE_GROUP_STARTS, strict=True) if age >= start][-1]
