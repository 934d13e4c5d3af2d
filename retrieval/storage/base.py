"""What a place for checkpoints or index versions promises, on a disk and in an object store alike.

A set of files that is not committed is never listed, and `commit` makes all of its files visible at one instant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Protocol

import pyarrow as pa

from retrieval.storage.durable import FileEntry
from retrieval.storage.notes import Notes
from retrieval.storage.owned_folder import OwnedFolder

MANIFEST = "manifest.json"
Hook = Callable[[str], None]
"""Called with the name of each step of a commit before it is taken; tests kill the process in it."""
Describe = Callable[[str, Sequence[FileEntry]], bytes]
"""A manifest, from the name of its set and the files in it."""
POINTER = "CURRENT"
"""The note that names the live index version."""


class StorageLocationError(ValueError):
    """A place that cannot be used; names the setting."""


class DamagedFile(RuntimeError):
    """A file is not what its manifest says."""


class NotAFile(RuntimeError):
    """A link, a pipe or a device stands where a stored file should be."""


@dataclass(frozen=True)
class Kind:
    """What a storage holds, and how its sets of files are named and ordered.

    Attributes:
        prefix: of each name; a number of at least eight digits follows.
        plural: what they are called in messages.
        setting: the setting that says where they lie.
        repeats: whether one number can be written again, with `.N` after it.
    """

    prefix: str
    plural: str
    setting: str
    repeats: bool

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"{self.prefix}(\d{{8,}})" + (r"(?:\.(\d+))?" if self.repeats else "()"))

    def name_of(self, number: int, repetition: int = 0) -> str:
        """The name of a number, or of its repetition."""
        return f"{self.prefix}{number:08d}" + (f".{repetition}" if repetition else "")

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


CHECKPOINTS = Kind("step-", "checkpoints", "train.checkpoint_path", repeats=True)
VERSIONS = Kind("v", "index versions", "train.index_path", repeats=False)


def nothing(step: str) -> None:
    """The hook of an undisturbed run: does nothing."""


def never() -> bool:
    """No."""
    return False


class LocalCopy(Protocol):
    """A file on this machine that stays while this object does."""

    @property
    def path(self) -> Path:
        """Where it is."""


class Storage(Protocol):
    """Named sets of files.

    One writer that all ranks share (checkpoints) calls `begin`, `writing` and `commit` with a name that it chose.
    Writers that know nothing of one another (index versions) call `build` and `commit_next`, which finds a free name.
    """

    kind: Kind

    @property
    def where(self) -> str:
        """The place, for people."""

    def location(self, name: str = "") -> str:
        """What opens one set, or the place itself, again: with the options that stand in the query of a URI."""

    def names(self) -> list[str]:
        """Committed sets, lowest number first; on disk also a folder whose manifest is missing."""

    def begin(self, name: str) -> None:
        """Make room for one that is to be written, and drop what crashes left behind (rank 0)."""

    def writing(self, name: str, file: str) -> AbstractContextManager[IO[bytes]]:
        """A binary file of it; the file is durable when the context is left."""

    def commit(self, name: str, manifest: bytes, at: Hook) -> None:
        """Put the manifest and make the whole visible (rank 0, after every rank has written its files)."""

    def build(self) -> OwnedFolder:
        """A folder on this machine for one writer of many, to fill by path; drops what crashes left behind."""

    def commit_next(self, folder: OwnedFolder, describe: Describe) -> str:
        """Commit the files of such a folder, which is then gone, under a name above all that are taken.

        Args:
            folder: from `build`.
            describe: the manifest, given the name and the files as they were written.
        Returns:
            The name.
        """

    def exclusive(self) -> AbstractContextManager[None]:
        """On a disk, keep the other processes from `build`, `commit_next` and this; an object store has no locks."""

    def read(self, name: str, file: str) -> pa.Buffer:
        """A file's content; FileNotFoundError if it is not there, NotAFile if it leads elsewhere."""

    def reading(self, name: str, file: str) -> AbstractContextManager[IO[bytes]]:
        """A file to be read from its beginning; the same errors."""

    def copy_here(self, name: str, entry: FileEntry) -> LocalCopy:
        """A file as a path on this machine: its own place on a disk, else a cached copy that matches the entry.

        Raises:
            FileNotFoundError: it is not there.
            DamagedFile: what was copied is not what the entry says.
        """

    def remove(self, name: str, unless: Callable[[], bool] = never) -> None:
        """Remove a committed set; a crash on the way leaves garbage, never half of one.

        Args:
            name: of the set.
            unless: called once the set can no longer be opened; if it returns true, the set is restored.
        """

    def discard(self, name: str) -> None:
        """Remove one that will not be committed."""

    def path(self, name: str) -> Path | None:
        """Its folder, None in an object store."""

    @property
    def notes(self) -> Notes:
        """Small notes beside the sets: claims, holds, and which version is live."""

    def drop_unfinished(self) -> None:
        """On a disk, see that nothing that is being written now can be committed any more."""
