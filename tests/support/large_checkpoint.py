"""A full checkpoint of any number of items, written at the speed of the disk: nothing is trained for it."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cluster.checkpoints.checkpoint import Checkpoint, CheckpointStore
from cluster.checkpoints.parts.catalogue import ITEMS, USERS
from cluster.checkpoints.parts.towers import FILE as TOWERS
from cluster.checkpoints.parts.towers import tower_tensors
from cluster.config import FreshetConfig
from cluster.queries.towers import new_towers
from model.features import ITEM
from streaming.events.schema import HISTORY_SCHEMA, ITEM_SCHEMA, USER_SCHEMA

_SLICE = 1 << 16
_CENTRES, _SPREAD = 2048, 0.3
_USERS, _HISTORY = 3000, 20


def write_large_checkpoint(config: FreshetConfig, items: int) -> Checkpoint:
    """Items 1 to `items` around some centres, as one rank wrote them, and 3,000 users of some of them."""
    rng = np.random.default_rng(config.seed)
    store = CheckpointStore(config.checkpoint_location)
    writing = store.begin(1)
    towers = tower_tensors(new_towers(config, torch.device("cpu")), None)
    files = [
        writing.write_tensors(TOWERS, towers),
        writing.write_table("rows-0000-4096.arrow", _rows(rng, items, config.model.dim)),
        writing.write_table(ITEMS, _catalogue(rng, items)),
        writing.write_table(USERS, USER_SCHEMA.empty_table()),
        writing.write_table("users-p00000.arrow", _users(rng, items)),
    ]
    state = {"events_trained": items, "workers": 1, "positions": {"0": [0, 0]}, "config": asdict(config)}
    return store.commit(writing, files, state)


def _rows(rng: np.random.Generator, items: int, dim: int) -> Iterator[pa.Table]:
    centres = rng.standard_normal((_CENTRES, dim), np.float32)
    for start in range(1, items + 1, _SLICE):
        ids = np.arange(start, min(start + _SLICE, items + 1))
        values = centres[ids % _CENTRES] + _SPREAD * rng.standard_normal((ids.shape[0], dim), np.float32)
        yield pa.table(
            {
                "table": np.full(ids.shape[0], ITEM, np.int16),
                "id": ids,
                "value": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dim),
                "frequency": np.ones(ids.shape[0]),
                "last_seen_ms": np.zeros(ids.shape[0], np.int64),
            }
        )


def _catalogue(rng: np.random.Generator, items: int) -> Iterator[pa.Table]:
    for start in range(1, items + 1, _SLICE):
        ids = np.arange(start, min(start + _SLICE, items + 1))
        columns = [
            pa.array(ids),
            pa.nulls(ids.shape[0], pa.string()),
            _lists(rng.integers(1, 20, (ids.shape[0], 1)), pa.ListArray, np.int32),
            pa.array(np.zeros(ids.shape[0], np.bool_)),
        ]
        yield pa.table(columns, schema=ITEM_SCHEMA)


def _users(rng: np.random.Generator, items: int) -> pa.Table:
    ids, zeros = np.arange(1, _USERS + 1), np.zeros(_USERS, np.int32)
    # Everybody stays near one centre.
    history = (ids % _CENTRES)[:, None] + _CENTRES * rng.integers(
        0, max(1, items // _CENTRES), (_USERS, _HISTORY)
    )
    times = np.broadcast_to(np.arange(_HISTORY), history.shape)
    columns = [
        pa.array(ids),
        pa.array(zeros),
        pa.array(zeros),
        pa.array(np.full(_USERS, _HISTORY)),
        _lists(np.clip(history, 1, items), pa.LargeListArray, np.int64),
        _lists(times, pa.LargeListArray, np.int64),
        _lists(history[:, :0], pa.LargeListArray, np.int64),
    ]
    return pa.table(columns, schema=HISTORY_SCHEMA)


def _lists(values: np.ndarray, kind: Any, offset: type) -> pa.Array:
    ends = np.arange(values.shape[0] + 1, dtype=offset) * values.shape[1]
    return kind.from_arrays(pa.array(ends.astype(offset)), pa.array(np.ascontiguousarray(values).reshape(-1)))
