"""Data sets of users' sequences for benchmarks: a folder, or a synthetic one with the lengths of amazon_beauty.

Shape letters: U users, N events, I items, K categories.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.evaluation.protocol.data import Tables
from deploy.datasets.datasets import load
from streaming.events.schema import CATEGORIES, ITEM_ID, TIMESTAMP_MS, TITLE, USER_ID

AMAZON_BEAUTY = Path(__file__).resolve().parents[4] / "shared" / "data" / "amazon_beauty"

_SHARES = (0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1)
_LENGTHS = (5, 5, 5, 6, 6, 7, 8, 10, 12, 14, 21, 32, 43, 56, 98, 204)
"""Quantiles of events per user in amazon_beauty."""


@dataclass(frozen=True)
class SyntheticSequences:
    """Users with as many events as those of amazon_beauty, on Zipf items with random categories."""

    users: int = 22_363
    items: int = 12_101
    categories: int = 2
    item_exponent: float = 0.8
    seed: int = 1

    def tables(self) -> Tables:
        """Events in the order of the users, one second apart."""
        rng = np.random.default_rng(self.seed)
        shares_U = (np.arange(self.users) + 0.5) / self.users
        length_U = np.interp(shares_U, _SHARES, _LENGTHS).round().astype(np.int64)
        user_N = np.repeat(np.arange(1, self.users + 1), rng.permutation(length_U))
        chance_I = 1.0 / np.arange(1, self.items + 1) ** self.item_exponent
        item_N = rng.choice(np.arange(1, self.items + 1), user_N.shape[0], p=chance_I / chance_I.sum())
        events = {USER_ID: user_N, ITEM_ID: item_N, TIMESTAMP_MS: 1000 * np.arange(user_N.shape[0])}
        return Tables("synthetic, lengths of amazon_beauty", pa.table(events), self._items(rng), _no_users())

    def _items(self, rng: np.random.Generator) -> pa.Table:
        category_IK = rng.integers(1, 250, (self.items, self.categories)).astype(str)
        columns = {
            ITEM_ID: pa.array(np.arange(1, self.items + 1)),
            TITLE: pa.array([f"item {i}" for i in range(1, self.items + 1)]),
            CATEGORIES: pa.array(category_IK.tolist(), pa.list_(pa.string())),
        }
        return pa.table(columns)


def tables_of(folder: Path) -> Tables:
    """A data set's folder (interactions.parquet and what else it has)."""
    data = load(folder)
    return Tables(data.name, data.interactions, data.items, data.users)


def tables_or_synthetic(folder: Path) -> Tables:
    """The folder's data set; the synthetic one if there is no such folder."""
    return tables_of(folder) if folder.is_dir() else SyntheticSequences().tables()


def _no_users() -> pa.Table:
    return pa.table({USER_ID: pa.array([], pa.int64())})
