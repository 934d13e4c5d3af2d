"""What a place for checkpoints or index versions promises, on a disk and in an object store alike.

A set of files that is not committed is never listed, and `commit` makes all of its files visible at one instant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from retrieval.storage.notes import Notes

MANIFEST = "manifest.json"
Hook = Callable[[str], None]
"""Called with the name of each step of a commit before it is taken; tests kill the process in it."""


class StorageLocationError(ValueError):
    """A place that cannot be used; names the setting."""


class NotAFile(RuntimeError):
    """A link, a pipe or a device stands where a stored file should be."""


@dataclass(frozen=True)
class Kind:
    """What a storage holds, and how its sets of files are named and ordered.

    Attributes:
        prefix: of each name; a number of at least eight digits follows, and `.N` where one is written again.
        plural: what they are called in messages.
        setting: the setting that says where they lie.
    """

    prefix: str
    plural: str
    setting: str

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"{self.prefix}(\d{{8,}})(?:\.(\d+))?")

    def is_name(self, name: object) -> bool:
        """Whether a set of this kind can have this name."""
        return isinstance(name, str) and self._pattern.fullmatch(name) is not None

    def order_of(self, name: str) -> tuple[int, int]:
        """Number and repetition in a name, by which names are ordered."""
        match = self._pattern.fullmatch(name)
        assert match is not None, name
        return int(match[1]), int(match[2] or 0)

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Those that are names of this kind, lowest number first."""
        return sorted(filter(self.is_name, names), key=self.order_of)


CHECKPOINTS = Kind("step-", "checkpoints", "train.checkpoint_path")
VERSIONS = Kind("v", "index versions", "train.index_path")


def nothing(step: str) -> None:
    """The hook of a run that nobody disturbs."""


class Storage(Protocol):
    """Named checkpoints, each a set of named files."""

    kind: Kind

    @property
    def where(self) -> str:
        """The place, for people."""

    def names(self) -> list[str]:
        """Committed checkpoints, oldest first; on disk also a folder whose manifest somebody took away."""

    def begin(self, name: str) -> None:
        """Make room for one that is to be written, and drop what crashes left behind (rank 0)."""

    def writing(self, name: str, file: str) -> Any:
        """Context manager of a binary file of it; the file is durable when the context is left."""

    def commit(self, name: str, manifest: bytes, at: Hook) -> None:
        """Put the manifest and make the whole visible (rank 0, after every rank has written its files)."""

    def read(self, name: str, file: str) -> pa.Buffer:
        """A file's content; FileNotFoundError if it is not there, NotAFile if it leads elsewhere."""

    def remove(self, name: str) -> None:
        """Remove a committed checkpoint; a crash on the way leaves garbage, never half of one."""

    def discard(self, name: str) -> None:
        """Remove one that will not be committed."""

    def path(self, name: str) -> Path | None:
        """Its folder, None in an object store."""

    @property
    def notes(self) -> Notes:
        """Small notes beside the checkpoints: claims (`claim.py`) and holds (`hold.py`)."""

    def drop_unfinished(self) -> None:
        """On a disk, see that nothing that is being written now can be committed any more."""
