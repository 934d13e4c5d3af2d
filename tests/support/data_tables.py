"""Data sets for tests of the evaluation: written by hand, or drawn at random."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from cluster.evaluation.protocol.data import Tables

Event = tuple[int, int, int]
"""User, item, time in ms."""


def tables_of(events: Sequence[Event], **columns: pa.Array) -> Tables:
    """A data set without items and users; `pos` is the place in the list."""
    user, item, time = (np.array(column, np.int64) for column in zip(*events, strict=True))
    interactions = pa.table(
        {"user_id": user, "item_id": item, "timestamp_ms": time, "pos": np.arange(len(user)), **columns}
    )
    items = pa.table(
        {
            "item_id": pa.array([], pa.int64()),
            "title": pa.array([], pa.string()),
            "categories": pa.array([], pa.list_(pa.string())),
        }
    )
    return Tables("drawn", interactions, items, pa.table({"user_id": pa.array([], pa.int64())}))


def random_tables(
    seed: int = 0,
    *,
    users: int = 30,
    items: int = 20,
    events: int = 400,
    step_ms: int = 60_000,
    first_ms: int = 0,
) -> Tables:
    """Walks over a circle of items, so that the next item can be learned; categories, attributes, equal times."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, users, events)
    item = np.zeros(events, np.int64)
    at = rng.integers(0, items, users)
    for n, u in enumerate(user):
        at[u] = (at[u] + rng.choice([1, 2], p=[0.8, 0.2])) % items
        item[n] = 100 + at[u]
    time = first_ms + np.sort(rng.integers(0, events // 2, events)) * step_ms
    drawn = tables_of(list(zip((user + 1).tolist(), item.tolist(), time.tolist(), strict=True)))
    names = [["even" if i % 2 == 0 else "odd", f"third {i % 3}"] for i in range(items)]
    catalogue = pa.table(
        {
            "item_id": np.arange(items) + 100,
            "title": [f"item {i}" for i in range(items)],
            "categories": pa.array(names, pa.list_(pa.string())),
        }
    )
    people = pa.table(
        {"user_id": np.arange(users) + 1, "gender": ["M" if u % 2 else "F" for u in range(users)]}
    )
    return Tables("drawn", drawn.interactions, catalogue, people)
