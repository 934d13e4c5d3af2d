"""The interface of storage for checkpoints and index versions, on a disk or in an object store.

A set of files that is not committed is never listed, and `commit` makes all its files visible at once.
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
"""Called with the name of each step of a commit before the step; tests kill the process in it."""
Describe = Callable[[str, Sequence[FileEntry]], bytes]
"""Returns a manifest, given the name of its set and the files in it."""
POINTER = "CURRENT"
"""The note that names the live index version."""


class StorageLocationError(ValueError):
    """A location that cannot be used; names the setting."""


class DamagedFile(RuntimeError):
    """A file does not match its manifest."""


class NotAFile(RuntimeError):
    """There is a link, a pipe or a device instead of a stored file."""


@dataclass(frozen=True)
class Kind:
    """The kind of sets in a storage, and how they are named and ordered.

    Attributes:
        prefix: of each name; a number of at least eight digits follows.
        plural: their name in messages.
        setting: the setting with their location.
        repeats: whether a number can be written again, with `.N` after it.
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
        """The names of this kind among `names`, lowest number first."""
        return sorted(filter(self.is_name, names), key=self.order_of)


CHECKPOINTS = Kind("step-", "checkpoints", "train.checkpoint_path", repeats=True)
VERSIONS = Kind("v", "index versions", "train.index_path", repeats=False)
DELTAS = Kind("d", "deltas", "train.index_path", repeats=False)


def nothing(step: str) -> None:
    """The hook of an undisturbed run: does nothing."""


def never() -> bool:
    """No."""
    return False


class LocalCopy(Protocol):
    """A file on this machine that is kept while this object exists."""

    @property
    def path(self) -> Path:
        """Where it is."""


class Storage(Protocol):
    """Named sets of files.

    One writer that all ranks share (checkpoints) calls `begin`, `writing` and `commit` with a name that it chose.
    Independent writers (index versions) call `build` and `commit_next`, which finds a free name.
    """

    kind: Kind

    @property
    def where(self) -> str:
        """The location, for people."""

    def location(self, name: str = "") -> str:
        """The location that opens one set, or the storage itself, again, with the options in a URI's query."""

    def names(self) -> list[str]:
        """Committed sets, lowest number first; on a disk also folders whose manifest is missing."""

    def begin(self, name: str) -> None:
        """Begin a set, and remove leftovers of crashes (rank 0)."""

    def writing(self, name: str, file: str) -> AbstractContextManager[IO[bytes]]:
        """A binary file of the set to write, durable when the context is left."""

    def commit(self, name: str, manifest: bytes, at: Hook) -> None:
        """Write the manifest and make the set visible (rank 0, after every rank has written its files)."""

    def build(self) -> OwnedFolder:
        """A folder on this machine for one of several writers, to fill by path; removes leftovers of crashes."""

    def commit_next(self, folder: OwnedFolder, describe: Describe) -> str:
        """Commit the files of such a folder, which is then removed, under a name above all existing ones.

        Args:
            folder: from `build`.
            describe: returns the manifest, given the name and the files as written.
        Returns:
            The name.
        """

    def commit_as(self, folder: OwnedFolder, name: str, describe: Describe) -> None:
        """Like `commit_next`, under a name that the only writer of these sets chose.

        Raises:
            FileExistsError: there is a set of this name.
            OSError: the storage failed; the set may be committed nevertheless.
        """

    def exclusive(self) -> AbstractContextManager[None]:
        """On a disk, keep other processes out of `build`, `commit_next` and this; an object store has no locks."""

    def read(self, name: str, file: str) -> pa.Buffer:
        """A file's content; FileNotFoundError if it does not exist, NotAFile if it is a link or the like."""

    def reading(self, name: str, file: str) -> AbstractContextManager[IO[bytes]]:
        """A file to read from its beginning; the same errors."""

    def copy_here(self, name: str, entry: FileEntry) -> LocalCopy:
        """A file as a path on this machine: the file itself on a disk, else a cached copy that matches the entry.

        Raises:
            FileNotFoundError: it does not exist.
            DamagedFile: the copied file does not match the entry.
        """

    def remove(self, name: str, unless: Callable[[], bool] = never) -> None:
        """Remove a committed set; a crash meanwhile leaves garbage, never a partial set.

        Args:
            name: of the set.
            unless: called once the set can no longer be opened; if it returns true, the set is restored.
        """

    def remove_folder(self, name: str) -> None:
        """Remove a folder that is not a set, with the sets of another storage in it, if it exists."""

    def discard(self, name: str) -> None:
        """Remove a set that will not be committed."""

    def path(self, name: str) -> Path | None:
        """Its folder, None in an object store."""

    @property
    def notes(self) -> Notes:
        """Small notes beside the sets: claims, holds, and which version is live."""

    def drop_unfinished(self) -> None:
        """On a disk, make sure that sets being written now can no longer be committed."""
