"""Small notes beside the stored sets, in a folder or an object store: claims, heartbeats and holds.

A note is replaced as a whole. A heartbeat is a note's time of change, which the storage keeps: a file is touched, so
that a full disk does not make a run look dead, and an object is put again.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from pyarrow import fs

from retrieval.storage.durable import make_private, replace_durably

FOLDER = "claims"


class Notes(Protocol):
    """Notes by name; a name may have one folder in it."""

    def read(self, name: str) -> bytes:
        """The content; empty if there is none."""

    def put(self, name: str, content: bytes) -> None:
        """Replace it; a reader sees the old content or the new one."""

    def touch(self, name: str) -> None:
        """Update its time of change, which `changed` returns."""

    def changed(self, name: str) -> float | None:
        """When it was last put or touched, in seconds since the epoch by the storage's clock; None if it is missing."""

    def remove(self, name: str) -> None:
        """Remove it, if it exists."""

    def names(self) -> list[str]:
        """The notes in the folder `claims`, as `claims/name`."""


class LocalNotes:
    """Files."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, name: str) -> bytes:
        """See Notes."""
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            return b""

    def put(self, name: str, content: bytes) -> None:
        """See Notes."""
        make_private((self._root / name).parent)
        replace_durably(self._root / name, content)

    def touch(self, name: str) -> None:
        """See Notes."""
        try:
            os.utime(self._root / name)
        except FileNotFoundError:
            self.put(name, b"")

    def changed(self, name: str) -> float | None:
        """See Notes."""
        try:
            return (self._root / name).stat().st_mtime
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        """See Notes."""
        (self._root / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """See Notes."""
        found = (path.name for path in (self._root / FOLDER).glob("*") if not path.name.startswith("."))
        return sorted(f"{FOLDER}/{name}" for name in found)


class ObjectNotes:
    """Objects under a prefix."""

    def __init__(self, filesystem: fs.FileSystem, prefix: str) -> None:
        self._files, self._prefix = filesystem, prefix

    def read(self, name: str) -> bytes:
        """See Notes."""
        try:
            with self._files.open_input_file(f"{self._prefix}/{name}") as source:
                content: bytes = source.read()
        except FileNotFoundError:
            return b""
        return content

    def put(self, name: str, content: bytes) -> None:
        """See Notes."""
        with self._files.open_output_stream(f"{self._prefix}/{name}") as sink:
            sink.write(content)

    def touch(self, name: str) -> None:
        """See Notes."""
        self.put(name, self.read(name) or uuid.uuid4().hex.encode())

    def changed(self, name: str) -> float | None:
        """See Notes."""
        found = self._files.get_file_info(f"{self._prefix}/{name}")
        return found.mtime_ns / 1e9 if found.type == fs.FileType.File else None

    def remove(self, name: str) -> None:
        """See Notes."""
        with suppress(FileNotFoundError):
            self._files.delete_file(f"{self._prefix}/{name}")

    def names(self) -> list[str]:
        """See Notes."""
        selector = fs.FileSelector(f"{self._prefix}/{FOLDER}", allow_not_found=True)
        found = self._files.get_file_info(selector)
        return sorted(f"{FOLDER}/{e.base_name}" for e in found if e.type == fs.FileType.File)
