"""Files that survive a power cut, and what a manifest says of them."""

from __future__ import annotations

import hashlib
import os
import uuid
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class FileEntry:
    """One file as its writer saw it."""

    name: str
    size: int
    sha256: str


def write_durably(path: Path, payload: bytes) -> FileEntry:
    """Write and fsync one file."""
    with path.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(path.name, len(payload), hashlib.sha256(payload).hexdigest())


def replace_durably(path: Path, payload: bytes) -> FileEntry:
    """Write a file anew; whoever reads it meanwhile, or after a crash, finds the old content or the new one."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    entry = write_durably(temporary, payload)
    temporary.replace(path)
    fsync_directory(path.parent)
    return replace(entry, name=path.name)


def seal(path: Path) -> FileEntry:
    """Fsync a file that somebody else has written."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return FileEntry(path.name, path.stat().st_size, sha256(path))


def sha256(path: Path) -> str:
    """Hexadecimal checksum of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_directory(path: Path) -> None:
    """Make renames and new names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
