"""Files of a storage, for writing and for reading."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa

from retrieval.storage.base import NotAFile, Storage
from retrieval.storage.durable import FileEntry

CHUNK_BYTES = 8 * 2**20


class HashingSink:
    """A binary file that computes the size and SHA-256 of the written data."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._sink, self._hash, self._size = sink, hashlib.sha256(), 0
        self.closed = False

    def write(self, data: bytes) -> int:
        """Write and count."""
        self._sink.write(data)
        self._hash.update(data)
        self._size += len(data)
        return len(data)

    def flush(self) -> None:
        """Does nothing; Arrow requires it, and the file's owner fsyncs."""

    def close(self) -> None:
        """Does nothing; Arrow requires it, and the file's owner closes it."""

    def entry(self, file: str) -> FileEntry:
        """The file's entry in a manifest."""
        return FileEntry(file, self._size, self._hash.hexdigest())


@dataclass(frozen=True)
class StoredFile:
    """A file of a committed set."""

    storage: Storage
    owner: str
    name: str

    @property
    def stem(self) -> str:
        """Its name without the last suffix."""
        return self.name.rpartition(".")[0]

    def read(self) -> pa.Buffer:
        """The content."""
        return self.storage.read(self.owner, self.name)

    def __str__(self) -> str:
        return f"{self.storage.where}/{self.owner}/{self.name}"


def file_problem(storage: Storage, name: str, entry: Mapping[str, Any]) -> str:
    """How a file differs from its entry in the manifest; empty if it does not."""
    digest, size = hashlib.sha256(), 0
    try:
        with storage.reading(name, entry["name"]) as source:
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
    except FileNotFoundError:
        return "is missing"
    except NotAFile:
        return "is not a file but a link"
    if size != entry["size"]:
        return f"has {size} bytes instead of {entry['size']} and does not match its checksum"
    return "" if digest.hexdigest() == entry["sha256"] else "does not match its checksum"
