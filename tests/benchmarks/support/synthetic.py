"""Events, items and users out of a seed: Zipf items, users in bursts, nothing to download.

Shapes: N events, B bursts.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from streaming.catalogue.catalogue import CatalogueUpdate
from streaming.events.schema import EVENT_SCHEMA, ITEM_SCHEMA, USER_SCHEMA

_FIRST_MS = 1_700_000_000_000


@dataclass(frozen=True)
class Population:
    """Who does what to what.

    Attributes:
        users, items: how many there are; ids count from 1.
        burst: mean number of consecutive events of one user.
        item_exponent: of the items' Zipf law.
        categories, attributes: values per item and per user, of 20 different ones each.
        seed: everything is a function of it.
    """

    users: int = 2_000
    items: int = 5_000
    burst: float = 4.0
    item_exponent: float = 1.0
    categories: int = 2
    attributes: int = 3
    seed: int = 1

    def events(self, count: int) -> pa.RecordBatch:
        """The first `count` events in EVENT_SCHEMA, 10 ms apart."""
        rng = np.random.default_rng(self.seed)
        bursts = int(count / self.burst * 1.5) + 100
        length_B = rng.geometric(1.0 / self.burst, bursts)
        user_N = np.repeat(rng.integers(1, self.users + 1, bursts), length_B)[:count]
        chance = 1.0 / np.arange(1, self.items + 1) ** self.item_exponent
        below = np.cumsum(chance) / chance.sum()
        # The last border may round to less than 1.
        item_N = 1 + np.minimum(np.searchsorted(below, rng.random(count)), self.items - 1)
        columns = {
            "user_id": user_N,
            "item_id": item_N,
            "timestamp_ms": _FIRST_MS + 10 * np.arange(count),
            "action": pa.nulls(count, pa.string()),
            "weight": pa.nulls(count, pa.float32()),
            "value": pa.nulls(count, pa.float32()),
            "event_id": pa.nulls(count, pa.string()),
        }
        return pa.RecordBatch.from_pydict(columns, schema=EVENT_SCHEMA)

    def catalogue(self) -> CatalogueUpdate:
        """Every item with its categories and every user with its attributes."""
        rng = np.random.default_rng(self.seed + 1)
        items, users = np.arange(1, self.items + 1), np.arange(1, self.users + 1)
        item_columns = [
            pa.array(items),
            pa.array([f"item {i}" for i in items.tolist()]),
            _lists(rng.integers(1, 21, (self.items, self.categories))),
            pa.array(np.zeros(self.items, np.bool_)),
        ]
        user_columns = [
            pa.array(users),
            _lists(rng.integers(1, 21, (self.users, self.attributes))),
            pa.array(np.zeros(self.users, np.bool_)),
        ]
        return CatalogueUpdate(
            pa.table(item_columns, schema=ITEM_SCHEMA), pa.table(user_columns, schema=USER_SCHEMA)
        )


def _lists(values: np.ndarray) -> pa.ListArray:
    offsets = np.arange(values.shape[0] + 1, dtype=np.int32) * np.int32(values.shape[1])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)))
