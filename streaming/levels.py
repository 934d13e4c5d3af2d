"""Levels of changes above a base that is never changed: each is at least twice as large as the next newer one.

A lookup asks a number of levels that grows with the logarithm of all changes, and each change is merged as often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar


class Level(Protocol):
    """Changes, at most one of each key."""

    def __len__(self) -> int:
        """How many."""


_Level = TypeVar("_Level", bound=Level)


def with_level(
    levels: Sequence[_Level], newest: _Level, merged: Callable[[_Level, _Level], _Level]
) -> tuple[_Level, ...]:
    """The levels, oldest first, with another one; those given stay as they are.

    Args:
        levels: oldest first.
        newest: the changes to add.
        merged: makes one level of an older and a newer one, whose changes win.
    """
    found = [*levels, newest]
    while len(found) > 1 and len(found[-2]) < 2 * len(found[-1]):
        newer = found.pop()
        found[-1] = merged(found[-1], newer)
    return tuple(found)
