"""Adapts a checkpoint to changed `stream.user_attributes`: the state of an attribute follows its name.

A new attribute starts fresh: its columns of the towers are initialized from the seed, its rows are created when needed,
and all users' values are unknown. Columns, rows and values of a removed attribute are dropped.

Shape letters: F attributes of the run, K keys, N users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from model.features import attribute_table
from streaming.arrays import BoolArray, Int16Array
from streaming.events.schema import ATTRIBUTES


@dataclass(frozen=True)
class AttributeChange:
    """The list of attributes of a checkpoint, and that of a run.

    Attributes:
        before: names in the checkpoint's order.
        now: names in the run's order.
    """

    before: Sequence[str]
    now: Sequence[str]

    @staticmethod
    def since(manifest: Mapping[str, Any], now: Sequence[str]) -> AttributeChange:
        """From a manifest's settings; without attributes in it, those of the run."""
        settings = manifest.get("config", {}).get("stream", {})
        return AttributeChange(list(settings.get("user_attributes", now)), list(now))

    @property
    def changed(self) -> bool:
        """Whether names or their order differ."""
        return self.before != self.now

    @property
    def fresh(self) -> list[str]:
        """Attributes that are not in the checkpoint."""
        return [name for name in self.now if name not in self.before]

    @property
    def dropped(self) -> list[str]:
        """Attributes that are only in the checkpoint."""
        return [name for name in self.before if name not in self.now]

    @property
    def place_F(self) -> list[int]:
        """Index of each attribute in the checkpoint's list; -1 for a new one."""
        return [self.before.index(name) if name in self.before else -1 for name in self.now]

    def __str__(self) -> str:
        """One line for people; empty if only the order changed."""
        starts = "it starts" if len(self.fresh) == 1 else "they start"
        said = {f"new, so {starts} fresh": self.fresh, "dropped": self.dropped}
        parts = [f"{', '.join(names)} {what}" for what, names in said.items() if names]
        return f"user attributes: {'; '.join(parts)}" if parts else ""

    def tables_now(self, tables: Int16Array) -> tuple[Int16Array, BoolArray]:
        """The new table of each key, int16 (K,), and whether it still has one, bool (K,)."""
        moved, kept = tables.copy(), np.ones(tables.shape, np.bool_)
        for at, name in enumerate(self.before):
            mine = tables == attribute_table(at)
            if name in self.now:
                moved[mine] = attribute_table(self.now.index(name))
            else:
                kept &= ~mine
        return moved, kept

    def of_users(self, users: pa.Table) -> pa.Table:
        """USER_SCHEMA with the run's attributes; new ones are unknown (0).

        Args:
            users: USER_SCHEMA with the checkpoint's attributes.
        """
        lists = users[ATTRIBUTES].combine_chunks()
        before_NF = lists.flatten().to_numpy().reshape(users.num_rows, len(self.before))
        now_NF = np.zeros((users.num_rows, len(self.now)), np.int64)
        for at, place in enumerate(self.place_F):
            if place >= 0:
                now_NF[:, at] = before_NF[:, place]
        offset_N = np.arange(users.num_rows + 1, dtype=np.int32) * np.int32(len(self.now))
        column = pa.ListArray.from_arrays(pa.array(offset_N), pa.array(now_NF.reshape(-1)))
        return users.set_column(users.column_names.index(ATTRIBUTES), users.schema.field(ATTRIBUTES), column)


UNCHANGED = AttributeChange((), ())
"""The change for files that are read under the settings that they were written under."""
