"""A data set by name or folder, and parts of it: the oldest events, the users of the newest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deploy.datasets.datasets import Dataset, fetch, load

if TYPE_CHECKING:
    from streaming.config import StreamConfig


def fetch_dataset(
    name_or_folder: str, progress: Callable[[str], None], stream: StreamConfig | None = None
) -> Dataset:
    """A data set by name, or from a folder with the same layout; `stream` limits the decoded size of its files."""
    folder = Path(name_or_folder)
    if not folder.is_dir():
        folder = fetch(name_or_folder, progress=progress)
    return load(folder, progress, **({} if stream is None else {"most_bytes": stream.max_row_group_bytes}))


def first_events(dataset: Dataset, events: int) -> Dataset:
    """The data set with only its first `events` interactions in time order; all of them for 0."""
    some = 0 < events < dataset.interactions.num_rows
    return split_events(dataset, events)[0] if some else dataset


def split_events(dataset: Dataset, events: int) -> tuple[Dataset, Dataset]:
    """The data set with only its first `events` interactions in time order, and with only the others."""
    # A stable sort, so that the choice among events of one second does not depend on the machine.
    order = np.argsort(dataset.interactions["timestamp_ms"].to_numpy(), kind="stable")
    first, rest = (
        replace(dataset, interactions=dataset.interactions.take(pa.array(np.sort(kept))))
        for kept in (order[:events], order[events:])
    )
    return first, rest


def recent_users(dataset: Dataset, count: int, at_least: int = 20) -> list[int]:
    """Users of the newest events, each with `at_least` events (fewer if no user has that many)."""
    interactions = dataset.interactions
    order = np.argsort(interactions["timestamp_ms"].to_numpy(), kind="stable")[::-1]
    users = interactions["user_id"].to_numpy()[order]
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(pa.array(users)).to_pylist()}
    _, first = np.unique(users, return_index=True)
    newest_first = users[np.sort(first)].tolist()
    active = [user for user in newest_first if counts[user] >= at_least]
    return (active or newest_first)[:count]
