"""Which ids get rows of their own, for how long, and how many: settings of the embedding tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.setting import require_declared, setting


@dataclass
class TableConfig:
    """Admission, expiry and size of the rows of users and items; categories and attributes always have their own."""

    admit_after: float = setting(
        1.0,
        "How often a user or an item must have been seen before it gets an embedding row of its own (1 = at once); "
        "until then it shares a row. Items count the summed weight of their events, users count steps.",
        at_least=0,
    )
    admitted_start: Literal["shared", "fresh"] = setting(
        "shared", "Initial value of an admitted id's own row: a copy of the row that it shared, or a new one."
    )
    max_waiting: int = setting(
        1_000_000, "Maximum number of ids without a row that are counted, over all ranks.", at_least=1
    )
    expire_after_s: float = setting(
        0.0,
        "Remove the row of a user or an item after this many seconds of event time without an event (0 = never).",
        at_least=0,
    )
    max_rows: int = setting(
        0, "Maximum number of rows of users and items, over all ranks (0 = no limit).", at_least=0
    )
    evict: Literal["recency", "frequency"] = setting(
        "recency", "Rows to remove above table.max_rows: those not seen for longest, or the least frequent."
    )
    sweep_every: int = setting(64, "Steps between two searches for rows to remove.", at_least=1)

    def __post_init__(self) -> None:
        """Check bounds and choices.

        Raises:
            ValueError: names the setting and its value.
        """
        require_declared("table", self)

    @property
    def has_shared_rows(self) -> bool:
        """Whether there are keys without a row of their own."""
        return self.admit_after > 1

    @property
    def removes_rows(self) -> bool:
        """Whether rows expire or are evicted."""
        return self.expire_after_s > 0 or self.max_rows > 0
