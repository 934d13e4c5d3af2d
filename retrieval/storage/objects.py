"""Sets of files under a prefix of an object store, which has no rename, so the manifest is put last."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO

import pyarrow as pa
from pyarrow import fs

from retrieval.storage.base import (
    CHECKPOINTS,
    MANIFEST,
    DamagedFile,
    Describe,
    Hook,
    Kind,
    LocalCopy,
    never,
    nothing,
)
from retrieval.storage.cache import FileCache
from retrieval.storage.durable import FileEntry
from retrieval.storage.files import CHUNK_BYTES, HashingSink
from retrieval.storage.notes import Notes, ObjectNotes
from retrieval.storage.owned_folder import LOCK, OwnedFolder, OwnedFolders

ABANDONED_AFTER_S = 24 * 3600.0
"""The next writer removes an uncommitted version to which no file was added for this long."""
_RESERVATION = "reserved-"
_GIVE_WAY = 8


class ObjectStorage:
    """A prefix of an object store (S3, GCS, anything that pyarrow.fs supports), where a rename is a copy.

    Args:
        filesystem: with credentials and endpoint from the environment.
        prefix: `bucket/folder`.
        uri: the location given by the user; its query is not shown in messages.
        kind: what it holds.
        cache: of this machine; by default the user's.
    """

    def __init__(
        self,
        filesystem: fs.FileSystem,
        prefix: str,
        uri: str,
        kind: Kind = CHECKPOINTS,
        cache: FileCache | None = None,
    ) -> None:
        self._files, self._prefix, self.kind = filesystem, prefix.rstrip("/"), kind
        self._uri, _, self._query = uri.partition("?")
        self._uri = self._uri.rstrip("/")
        self._cache = cache or FileCache()

    @property
    def where(self) -> str:
        """The URI."""
        return self._uri

    def location(self, name: str = "") -> str:
        """See Storage."""
        place = f"{self._uri}/{name}" if name else self._uri
        return f"{place}?{self._query}" if self._query else place

    def names(self) -> list[str]:
        """See Storage: those with a manifest."""
        found = self._prefixes()
        manifests = self._files.get_file_info([self._object(name, MANIFEST) for name in found])
        return [n for n, info in zip(found, manifests, strict=True) if info.type == fs.FileType.File]

    def begin(self, name: str) -> None:
        """See Storage: a prefix without a manifest was never committed."""
        committed = set(self.names())
        for leftover in self._prefixes():
            if leftover not in committed:
                self.discard(leftover)

    @contextmanager
    def writing(self, name: str, file: str) -> Iterator[IO[bytes]]:
        """See Storage."""
        with self._files.open_output_stream(self._object(name, file)) as sink:
            yield sink

    def commit(self, name: str, manifest: bytes, at: Hook) -> None:
        """See Storage: the put of the manifest is the commit."""
        at("manifest")
        at("rename")
        self._put(self._object(name, MANIFEST), manifest)
        at("renamed")

    def build(self) -> OwnedFolder:
        """See Storage: on this machine's disk, beside the cache."""
        return OwnedFolders(self._cache.root, ".building-").make()

    def commit_next(self, folder: OwnedFolder, describe: Describe) -> str:
        """See Storage: reserves a name, puts the files, then the manifest, which is the commit."""
        name, reservation = self._reserve()

        def still_reserved() -> None:
            if self._files.get_file_info(reservation).type != fs.FileType.File:
                raise OSError(f"{self.where}/{name} was removed while it was written; it took too long")

        self._put_all(folder, name, describe, still_reserved)
        with suppress(OSError):
            self._files.delete_file(reservation)
        folder.remove()
        return name

    def commit_as(self, folder: OwnedFolder, name: str, describe: Describe) -> None:
        """See Storage."""
        if self._files.get_file_info(self._object(name, MANIFEST)).type == fs.FileType.File:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), f"{self.where}/{name}")
        self._put_all(folder, name, describe, lambda: None)
        folder.remove()

    def _put_all(
        self, folder: OwnedFolder, name: str, describe: Describe, before_manifest: Callable[[], None]
    ) -> None:
        try:
            entries = [
                self._upload(name, path) for path in sorted(folder.path.iterdir()) if path.name != LOCK
            ]
            before_manifest()
            self.commit(name, describe(name, entries), nothing)
        except Exception:
            with suppress(OSError):  # a later writer removes it
                self.remove(name)  # the manifest may have been put nevertheless
                self.discard(name)
            raise

    def exclusive(self) -> AbstractContextManager[None]:
        """See Storage: nothing is locked; `remove` checks again, and names are reserved."""
        return nullcontext()

    @contextmanager
    def reading(self, name: str, file: str) -> Iterator[IO[bytes]]:
        """See Storage."""
        with self._files.open_input_stream(self._object(name, file)) as source:
            yield source

    def copy_here(self, name: str, entry: FileEntry) -> LocalCopy:
        """See Storage: from the cache, which copies each content once."""
        found = self._files.get_file_info(self._object(name, entry.name))
        if found.type != fs.FileType.File:
            raise FileNotFoundError(f"{self.where}/{name}/{entry.name}")
        if found.size != entry.size:
            raise DamagedFile(f"{entry.name} has {found.size} bytes instead of {entry.size}")
        return self._cache.copy_of(entry, lambda: self.reading(name, entry.name))

    def read(self, name: str, file: str) -> pa.Buffer:
        """See Storage."""
        with self._files.open_input_file(self._object(name, file)) as source:
            return source.read_buffer()

    def remove(self, name: str, unless: Callable[[], bool] = never) -> None:
        """See Storage: without its manifest the set is garbage; putting the manifest back restores it."""
        try:
            manifest = self.read(name, MANIFEST)
            self._files.delete_file(self._object(name, MANIFEST))
        except FileNotFoundError:  # another process is removing it too
            return
        if unless():
            self._put(self._object(name, MANIFEST), manifest)
            return
        self.discard(name)

    def discard(self, name: str) -> None:
        """See Storage; `begin` may run while a `remove` on the writing thread has not finished."""
        self._files.delete_dir_contents(f"{self._prefix}/{name}", missing_dir_ok=True)
        marker = self._files.get_file_info(f"{self._prefix}/{name}")
        if marker.type == fs.FileType.Directory:
            with suppress(FileNotFoundError):  # the other process was first
                self._files.delete_dir(f"{self._prefix}/{name}")

    def remove_folder(self, name: str) -> None:
        """See Storage."""
        self.discard(name)

    def path(self, name: str) -> Path | None:
        """See Storage."""
        return None

    @property
    def notes(self) -> Notes:
        """See Storage."""
        return ObjectNotes(self._files, self._prefix)

    def drop_unfinished(self) -> None:
        """See Storage: there is no rename, so a manifest that is being put at this moment still counts."""

    def _reserve(self) -> tuple[str, str]:
        """A name above all existing ones, and the object that reserves it.

        pyarrow.fs has neither locks nor conditional writes, but objects are listed as soon as they are put. A writer
        that puts a reservation and then finds no other was first, and all later writers find it. If two writers find
        both reservations, both choose another name.
        """
        number, step = max((self.kind.order_of(name)[0] for name in self._prefixes()), default=0), 1
        while True:
            number += step
            name = self.kind.name_of(number)
            reservation = self._object(name, f"{_RESERVATION}{uuid.uuid4().hex}")
            self._put(reservation, b"being written")
            found = self._files_of(name)
            if [file.path for file in found] == [reservation]:
                self._sweep(found[0].mtime_ns, keep=name)
                return name, reservation
            self._files.delete_file(reservation)
            step = 1 + secrets.randbelow(_GIVE_WAY)

    def _sweep(self, now_ns: int, keep: str) -> None:
        """Remove uncommitted versions that have not grown for a long time by the store's clock."""
        for name in set(self._prefixes()).difference(self.names(), [keep]):
            files = self._files_of(name)
            if files and now_ns - max(file.mtime_ns for file in files) > ABANDONED_AFTER_S * 1e9:
                self.discard(name)

    def _upload(self, name: str, path: Path) -> FileEntry:
        with self.writing(name, path.name) as raw, path.open("rb") as source:
            sink = HashingSink(raw)
            shutil.copyfileobj(source, sink, CHUNK_BYTES)
        return sink.entry(path.name)

    def _put(self, path: str, content: bytes | pa.Buffer) -> None:
        with self._files.open_output_stream(path) as sink:
            sink.write(content)

    def _files_of(self, name: str) -> list[fs.FileInfo]:
        found = self._files.get_file_info(fs.FileSelector(f"{self._prefix}/{name}", allow_not_found=True))
        return [info for info in found if info.type == fs.FileType.File]

    def _prefixes(self) -> list[str]:
        entries = self._files.get_file_info(fs.FileSelector(self._prefix, allow_not_found=True))
        return self.kind.in_order({e.base_name for e in entries if e.type == fs.FileType.Directory})

    def _object(self, name: str, file: str) -> str:
        return f"{self._prefix}/{name}/{file}"
