"""Sets of files in a folder: the rename of a folder whose files were fsynced commits it."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pyarrow as pa

from retrieval.storage.base import CHECKPOINTS, MANIFEST, Hook, Kind, NotAFile
from retrieval.storage.durable import (
    PRIVATE_FILE,
    PRIVATE_FOLDER,
    fsync_directory,
    is_plain_file,
    make_private,
    write_durably,
)
from retrieval.storage.notes import LocalNotes, Notes

_HIDDEN = (".writing-", ".removing-", ".replaced-")


class LocalStorage:
    """A folder on a disk that all ranks see."""

    def __init__(self, root: Path, kind: Kind = CHECKPOINTS) -> None:
        self.root, self.kind = root, kind

    @property
    def where(self) -> str:
        """The folder."""
        return str(self.root)

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

    def read(self, name: str, file: str) -> pa.Buffer:
        """See Storage; mapped, not read."""
        path = self.root / name / file
        if not is_plain_file(path):
            raise NotAFile(f"{path} is a link, a pipe or a device; a checkpoint's files lie in its folder")
        if path.stat().st_size == 0:
            return pa.py_buffer(b"")
        with pa.memory_map(str(path)) as source:
            return source.read_buffer()

    def remove(self, name: str) -> None:
        """See Storage."""
        going = self.root / f".removing-{name}"
        (self.root / name).rename(going)
        shutil.rmtree(going, ignore_errors=True)  # what is left of it `begin` removes

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
        """A folder that is being written loses its name first, so that its writer cannot commit what is left of it."""
        for leftover in self.root.glob(f".*{self.kind.prefix}*"):
            if leftover.name.startswith(_HIDDEN):
                going = leftover.with_name(f".removing-{uuid.uuid4().hex}-{self.kind.prefix}")
                with suppress(FileNotFoundError):  # committed just now, or removed by somebody else
                    leftover.rename(going)
                    shutil.rmtree(going, ignore_errors=True)

    def _unfinished(self, name: str) -> Path:
        return self.root / f".writing-{name}"
