"""Which ids get rows of their own, for how long, and how many: settings of the embedding tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class TableConfig:
    """Admission, expiry and size of the rows of users and items; categories and attributes always have theirs."""

    admit_after: float = field(
        default=1.0,
        metadata={
            "help": "how often a user or an item must have been seen before it gets a row of its own; until then "
            "it shares one with others (1 = at once). Items: summed weight of their events; users: steps"
        },
    )
    admitted_start: Literal["shared", "fresh"] = field(
        default="shared",
        metadata={
            "help": "how an admitted id's own row starts: as a copy of the row that it shared, or fresh as any other"
        },
    )
    max_waiting: int = field(
        default=1_000_000,
        metadata={"help": "most ids that are counted before they have a row, all ranks together"},
    )
    expire_after_s: float = field(
        default=0.0,
        metadata={
            "help": "a user or an item that no event has touched for so long, in event time, loses its row (0 = never)"
        },
    )
    max_rows: int = field(
        default=0, metadata={"help": "most rows of users and items, all ranks together (0 = no limit)"}
    )
    evict: Literal["recency", "frequency"] = field(
        default="recency",
        metadata={
            "help": "above table.max_rows, which rows go: the longest unseen or the least frequent ones"
        },
    )
    sweep_every: int = field(
        default=64,
        metadata={"help": "steps between two looks for rows that are expired or too many"},
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the setting."""
        for name in ("admit_after", "expire_after_s", "max_rows"):
            if getattr(self, name) < 0:
                raise ValueError(f"table.{name} must not be negative, got {getattr(self, name)}")
        for name in ("max_waiting", "sweep_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"table.{name} must be at least 1, got {getattr(self, name)}")
        if self.admitted_start not in ("shared", "fresh"):
            raise ValueError(f"table.admitted_start must be shared or fresh, got {self.admitted_start!r}")
        if self.evict not in ("recency", "frequency"):
            raise ValueError(f"table.evict must be recency or frequency, got {self.evict!r}")

    @property
    def has_shared_rows(self) -> bool:
        """Whether there are keys without a row of their own."""
        return self.admit_after > 1

    @property
    def removes_rows(self) -> bool:
        """Whether rows go by themselves."""
        return self.expire_after_s > 0 or self.max_rows > 0
