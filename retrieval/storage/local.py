"""Sets of files in a folder: a set is committed by renaming its folder after its files were fsynced."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa

from retrieval.storage.base import (
    CHECKPOINTS,
    MANIFEST,
    POINTER,
    Describe,
    Hook,
    Kind,
    LocalCopy,
    NotAFile,
    never,
)
from retrieval.storage.durable import (
    PRIVATE_FILE,
    PRIVATE_FOLDER,
    FileEntry,
    fsync_directory,
    is_plain_file,
    make_private,
    seal,
    write_durably,
)
from retrieval.storage.notes import LocalNotes, Notes
from retrieval.storage.owned_folder import LOCK, OwnedFolder, OwnedFolders

_HIDDEN = (".writing-", ".removing-", ".replaced-")


@dataclass(frozen=True)
class _InPlace:
    """A file that needs no copy."""

    path: Path


class LocalStorage:
    """A folder on a disk that all ranks see."""

    def __init__(self, root: Path, kind: Kind = CHECKPOINTS) -> None:
        self.root, self.kind = root, kind
        self._building = OwnedFolders(root, ".building-")

    @property
    def where(self) -> str:
        """The folder."""
        return str(self.root)

    def location(self, name: str = "") -> str:
        """See Storage."""
        return str(self.root / name)

    def names(self) -> list[str]:
        """See Storage."""
        if not self.root.is_dir():
            return []
        return self.kind.in_order(p.name for p in self.root.iterdir())

    def begin(self, name: str) -> None:
        """See Storage."""
        make_private(self.root)
        self._remove_leftovers()
        self._unfinished(name).mkdir(mode=PRIVATE_FOLDER)

    @contextmanager
    def writing(self, name: str, file: str) -> Iterator[IO[bytes]]:
        """See Storage."""
        path = self._unfinished(name) / file
        path.touch(PRIVATE_FILE)
        with path.open("wb") as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())

    def commit(self, name: str, manifest: bytes, at: Hook) -> None:
        """See Storage: manifest, fsync of the folder, rename, fsync of its parent."""
        writing = self._unfinished(name)
        at("manifest")
        write_durably(writing / MANIFEST, manifest)
        fsync_directory(writing)
        at("rename")
        writing.rename(self.root / name)
        at("renamed")
        fsync_directory(self.root)

    def build(self) -> OwnedFolder:
        """See Storage: a hidden folder beside the sets, locked by its builder."""
        folder = self._building.make()
        with self.exclusive():
            self._remove_hidden()
        return folder

    def commit_next(self, folder: OwnedFolder, describe: Describe) -> str:
        """See Storage: the files are fsynced before the rename."""
        entries = _sealed(folder)
        with self.exclusive():
            name = self.kind.name_of(max(map(self._number, self.names()), default=0) + 1)
            self._put_in_place(folder, name, describe(name, entries))
        folder.lock.close()
        return name

    def commit_as(self, folder: OwnedFolder, name: str, describe: Describe) -> None:
        """See Storage."""
        entries = _sealed(folder)
        with self.exclusive():
            if (self.root / name).exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.root / name))
            self._put_in_place(folder, name, describe(name, entries))
        folder.lock.close()

    def _put_in_place(self, folder: OwnedFolder, name: str, manifest: bytes) -> None:
        write_durably(folder.path / MANIFEST, manifest)
        (folder.path / LOCK).unlink()
        fsync_directory(folder.path)
        folder.path.rename(self.root / name)
        fsync_directory(self.root)

    def exclusive(self) -> AbstractContextManager[None]:
        """See Storage: a lock beside the sets, which ends with its process."""
        return self._building.exclusive()

    def read(self, name: str, file: str) -> pa.Buffer:
        """See Storage; mapped, not read."""
        path = self._file(name, file)
        if path.stat().st_size == 0:
            return pa.py_buffer(b"")
        with pa.memory_map(str(path)) as source:
            return source.read_buffer()

    @contextmanager
    def reading(self, name: str, file: str) -> Iterator[IO[bytes]]:
        """See Storage."""
        with self._file(name, file).open("rb") as source:
            yield source

    def copy_here(self, name: str, entry: FileEntry) -> LocalCopy:
        """See Storage: the file itself."""
        return _InPlace(self.root / name / entry.name)

    def remove(self, name: str, unless: Callable[[], bool] = never) -> None:
        """See Storage."""
        if unless():
            return
        # Hidden first, so that a crash meanwhile does not leave a set without its files.
        going = self.root / f".removing-{name}-{uuid.uuid4().hex}"
        (self.root / name).rename(going)
        shutil.rmtree(going, ignore_errors=True)  # `begin` or `build` removes the rest

    def remove_folder(self, name: str) -> None:
        """See Storage; hidden first, as in `remove`."""
        going = self.root / f".removing-{uuid.uuid4().hex}"
        with suppress(FileNotFoundError):
            (self.root / name).rename(going)
            shutil.rmtree(going, ignore_errors=True)

    def discard(self, name: str) -> None:
        """See Storage."""
        shutil.rmtree(self._unfinished(name), ignore_errors=True)

    def path(self, name: str) -> Path | None:
        """See Storage."""
        return self.root / name

    @property
    def notes(self) -> Notes:
        """See Storage."""
        return LocalNotes(self.root)

    def drop_unfinished(self) -> None:
        """See Storage."""
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """Remove a folder that is being written; it is renamed first, so that its writer cannot commit the rest."""
        for leftover in self.root.glob(f".*{self.kind.prefix}*"):
            if leftover.name.startswith(_HIDDEN):
                going = leftover.with_name(f".removing-{uuid.uuid4().hex}-{self.kind.prefix}")
                with suppress(FileNotFoundError):  # committed just now, or removed by another process
                    leftover.rename(going)
                    shutil.rmtree(going, ignore_errors=True)

    def _remove_hidden(self) -> None:
        """Remove sets whose removal was interrupted, and pointers that were never put in place."""
        for removing in self.root.glob(".removing-*"):
            shutil.rmtree(removing)
        for pointer in self.root.glob(f".{POINTER}-*"):
            pointer.unlink()

    def _number(self, name: str) -> int:
        return self.kind.order_of(name)[0]

    def _file(self, name: str, file: str) -> Path:
        path = self.root / name / file
        if not is_plain_file(path):
            raise NotAFile(
                f"{path} is a link, a pipe or a device; the files of {self.kind.plural} lie in their folders"
            )
        return path

    def _unfinished(self, name: str) -> Path:
        return self.root / f".writing-{name}"


def _sealed(folder: OwnedFolder) -> list[FileEntry]:
    return [seal(path) for path in sorted(folder.path.iterdir()) if path.name != LOCK]
