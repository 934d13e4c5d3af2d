"""Copies of stored files on this machine's disk, for what reads paths: Faiss, memory maps.

A copy lies in a folder that is named by its content, so versions that share a file share its copy, and a copy can never
be of something else. The copy keeps the name of its file, which may tell the reader something. Whoever uses one holds a
lock on it, which goes with its process; what nobody uses is removed, the longest unused first, once all copies together
exceed the bound.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
import uuid
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO

from retrieval.storage.base import DamagedFile
from retrieval.storage.durable import PRIVATE_FILE, PRIVATE_FOLDER, FileEntry, is_plain_name, make_private
from retrieval.storage.files import CHUNK_BYTES

DEFAULT_BYTES = 20 * 2**30
Source = Callable[[], AbstractContextManager[IO[bytes]]]
_COPYING = ".copying-"
_LEFTOVER_AFTER_S = 60.0
"""Between making a file and locking it a copy can be taken for a leftover; no longer than this."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class CachedFile:
    """A copy in the cache, which stays while this object does."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        weakref.finalize(self, os.close, descriptor)


class FileCache:
    """All copies under one folder, for any number of processes.

    Args:
        root: the folder; by default `objects` in $FRESHET_CACHE, else in ~/.cache/freshet.
        most_bytes: of all copies together, beyond what is in use.
    """

    def __init__(self, root: Path | None = None, most_bytes: int = DEFAULT_BYTES) -> None:
        self.root = root or _default_root()
        self._most_bytes = most_bytes

    def copy_of(self, entry: FileEntry, open_source: Source) -> CachedFile:
        """A copy that matches the entry: the one that is there, or a new one.

        Raises:
            DamagedFile: the source is not what the entry says.
            OSError: the source cannot be read, or the cache cannot be written.
        """
        if not _SHA256.fullmatch(entry.sha256) or not is_plain_name(entry.name):  # they become a path
            raise DamagedFile(f"{entry.name!r} has {entry.sha256!r} for a checksum")
        make_private(self.root)
        while (found := self._find(entry)) is None:
            self._download(entry, open_source)
        return found

    def _find(self, entry: FileEntry) -> CachedFile | None:
        """The copy that is there, if it is whole; locked before it is read, so that it stays."""
        path = self._path(entry)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        found = CachedFile(path, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_nlink == 0:  # removed before it was locked
            return None
        with os.fdopen(os.dup(descriptor), "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                path.unlink(missing_ok=True)
                return None
        os.utime(path)  # when it was used last
        return found

    def _download(self, entry: FileEntry, open_source: Source) -> None:
        """Copy the whole file beside the others, then give it its name, which nobody else's copy loses by that."""
        temporary, path = self.root / f"{_COPYING}{uuid.uuid4().hex}", self._path(entry)
        try:
            digest = hashlib.sha256()
            with open_source() as source, _new_file(temporary) as sink:
                fcntl.flock(sink, fcntl.LOCK_SH)
                while chunk := source.read(CHUNK_BYTES):
                    digest.update(chunk)
                    sink.write(chunk)
                sink.flush()
                os.fsync(sink.fileno())
            if digest.hexdigest() != entry.sha256:
                raise DamagedFile(f"{entry.name} does not match its checksum")
            self._shrink(entry.size)
            with suppress(
                FileExistsError, FileNotFoundError
            ):  # somebody was faster, or removes the folder now
                path.parent.mkdir(PRIVATE_FOLDER, exist_ok=True)
                path.hardlink_to(temporary)
        finally:
            temporary.unlink(missing_ok=True)

    def _shrink(self, coming: int) -> None:
        """Make room: what killed processes left half copied goes, then the copies that were used longest ago."""
        copies = []
        for leftover in self.root.glob(f"{_COPYING}*"):
            with suppress(FileNotFoundError):
                if time.time() - leftover.stat().st_mtime > _LEFTOVER_AFTER_S:
                    _remove_unused(leftover)
        for path in self.root.glob("[0-9a-f]*/*"):
            with suppress(FileNotFoundError):
                copies.append((path.stat().st_mtime, path.stat().st_size, path))
        surplus = sum(size for _, size, _ in copies) + coming - self._most_bytes
        for _, size, path in sorted(copies):
            if surplus <= 0:
                break
            if _remove_unused(path):
                surplus -= size
                with suppress(OSError):  # another copy lies there
                    path.parent.rmdir()

    def _path(self, entry: FileEntry) -> Path:
        return self.root / entry.sha256 / entry.name


def _remove_unused(path: Path) -> bool:
    """Remove a file unless a process uses it; whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):  # another copy by now
            return False
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    finally:
        os.close(descriptor)
    return True


def _new_file(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE), "wb")


def _default_root() -> Path:
    chosen = os.environ.get("FRESHET_CACHE")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return (Path(chosen).expanduser() if chosen else caches / "freshet") / "objects"
