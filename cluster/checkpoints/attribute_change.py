"""`stream.user_attributes` has changed since a checkpoint: what it knows of each attribute follows the name.

A new attribute starts fresh: its columns of the towers as the seed makes them, its rows as they come, everybody's value
unknown. One that is dropped takes its columns, rows and values with it.

Shape letters: F attributes of now, K keys, N users.
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
        """From a manifest's settings; one that says nothing of attributes has those of now."""
        settings = manifest.get("config", {}).get("stream", {})
        return AttributeChange(list(settings.get("user_attributes", now)), list(now))

    @property
    def changed(self) -> bool:
        """Whether names or their order differ."""
        return self.before != self.now

    @property
    def fresh(self) -> list[str]:
        """Attributes that the checkpoint knows nothing of."""
        return [name for name in self.now if name not in self.before]

    @property
    def dropped(self) -> list[str]:
        """Attributes that only the checkpoint knows."""
        return [name for name in self.before if name not in self.now]

    @property
    def place_F(self) -> list[int]:
        """Where each attribute stood in the checkpoint's list; -1 for a fresh one."""
        return [self.before.index(name) if name in self.before else -1 for name in self.now]

    def __str__(self) -> str:
        """One line for people; empty if all that changed is the order."""
        starts = "it starts" if len(self.fresh) == 1 else "they start"
        said = {f"new, so {starts} fresh": self.fresh, "dropped": self.dropped}
        parts = [f"{', '.join(names)} {what}" for what, names in said.items() if names]
        return f"user attributes: {'; '.join(parts)}" if parts else ""

    def tables_now(self, tables: Int16Array) -> tuple[Int16Array, BoolArray]:
        """The table of each key now, int16 (K,), and whether it has one, bool (K,)."""
        moved, kept = tables.copy(), np.ones(tables.shape, np.bool_)
        for at, name in enumerate(self.before):
            mine = tables == attribute_table(at)
            if name in self.now:
                moved[mine] = attribute_table(self.now.index(name))
            else:
                kept &= ~mine
        return moved, kept

    def of_users(self, users: pa.Table) -> pa.Table:
        """USER_SCHEMA with the attributes of now, unknown (0) where they are fresh.

        Args:
            users: USER_SCHEMA with those of before.
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
"""What a file that is read under the settings it was written under has behind it."""
