"""Copies of stored files on this machine's disk, for code that needs paths: Faiss, memory maps.

A copy is in a folder named by its content, so versions that share a file share its copy, and a copy cannot be mistaken
for another. It keeps the name of its file, which readers may depend on. A user of a copy holds a lock on it, which ends
with the process. Once all copies together exceed the limit, unused ones are removed, least recently used first.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
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
"""Before a new file is locked, it looks like a leftover; for no longer than this."""
_LOOKS, _LOOK_EVERY_S = 64, 60.0
"""All copies are looked at after this part of the limit, or this time."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class CachedFile:
    """A copy in the cache, which is kept while this object exists."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        weakref.finalize(self, os.close, descriptor)


class FileCache:
    """All copies under one folder, for any number of processes.

    Args:
        root: the folder; by default `objects` in $FRESHET_CACHE, else in ~/.cache/freshet.
        most_bytes: maximum size of all copies together; copies in use may exceed it, and new ones by a 64th.
    """

    def __init__(self, root: Path | None = None, most_bytes: int = DEFAULT_BYTES) -> None:
        self.root = root or _default_root()
        self._most_bytes = most_bytes
        self._grown, self._looked_s = 0, -math.inf

    def copy_of(self, entry: FileEntry, open_source: Source) -> CachedFile:
        """A copy that matches the entry: an existing or a new one.

        Raises:
            DamagedFile: the source does not match the entry.
            OSError: the source cannot be read, or the cache cannot be written.
        """
        if not _SHA256.fullmatch(entry.sha256) or not is_plain_name(
            entry.name
        ):  # they become parts of a path
            raise DamagedFile(f"{entry.name!r} has {entry.sha256!r} for a checksum")
        make_private(self.root)
        while (found := self._find(entry)) is None:
            self._download(entry, open_source)
        return found

    def _find(self, entry: FileEntry) -> CachedFile | None:
        """The existing copy, if it is intact; locked before it is read, so that it is not removed."""
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
        os.utime(path)  # the time of its last use
        return found

    def _download(self, entry: FileEntry, open_source: Source) -> None:
        """Copy the whole file under a temporary name, then link it to its name without replacing another copy."""
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
            self._make_room(entry.size)
            with suppress(
                FileExistsError, FileNotFoundError
            ):  # another process was faster, or is removing the folder
                path.parent.mkdir(PRIVATE_FOLDER, exist_ok=True)
                path.hardlink_to(temporary)
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, coming: int) -> None:
        """Shrink from time to time: many small files, such as those of deltas, must not cost a look at all each."""
        self._grown += coming
        if self._grown > self._most_bytes // _LOOKS or time.monotonic() - self._looked_s > _LOOK_EVERY_S:
            self._grown, self._looked_s = 0, time.monotonic()
            self._shrink(coming)

    def _shrink(self, coming: int) -> None:
        """Make room: remove partial copies of killed processes, then the least recently used copies."""
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
                with suppress(OSError):  # another copy is there
                    path.parent.rmdir()

    def _path(self, entry: FileEntry) -> Path:
        return self.root / entry.sha256 / entry.name


def _remove_unused(path: Path) -> bool:
    """Remove a file unless a process uses it; returns whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):  # it has been replaced by another copy
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
