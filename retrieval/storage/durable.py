"""Writes files that survive a power cut and that only their owner can read, and computes their manifest entries."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
"""Modes of files and folders that hold histories or are derived from them, regardless of the umask."""


@dataclass(frozen=True)
class FileEntry:
    """One file's name, size and checksum, as recorded by its writer."""

    name: str
    size: int
    sha256: str


def make_private(folder: Path) -> None:
    """Create a folder that only its owner can enter, with its missing parents; existing folders keep their modes."""
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)


def open_to_others(folder: Path, names: Collection[str] = ()) -> list[Path]:
    """Files below a folder that other users of this machine can read, judged by the modes from this folder down.

    Args:
        folder: the top; folders above it are not checked.
        names: only these files and folders in it; if empty, all.
    """
    found: list[Path] = []
    for path, folders, files in os.walk(folder):
        if not _lets_in(Path(path), stat.S_IXGRP, stat.S_IXOTH):
            folders.clear()
            continue
        if names and Path(path) == folder:
            folders[:], files = ([name for name in entries if name in names] for entries in (folders, files))
        found += [file for name in files if _lets_in(file := Path(path, name), stat.S_IRGRP, stat.S_IROTH)]
    return sorted(found)


def _lets_in(path: Path, group: int, others: int) -> bool:
    try:
        found = path.lstat()
    except OSError:  # removed meanwhile
        return False
    return not stat.S_ISLNK(found.st_mode) and bool(found.st_mode & (group | others))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add this file's name to errors of the block that name none, such as those of a write to a full disk.

    Raises:
        OSError: of the same number, with the path.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or str(path) in str(error):
            raise
        if error.errno is None:
            raise OSError(f"{path}: {error}") from error
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def write_durably(path: Path, payload: bytes, *, private: bool = True) -> FileEntry:
    """Write and fsync one file; with `private=False`, its mode follows the umask."""
    if private:
        path.touch(PRIVATE_FILE)
    with naming(path), path.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(path.name, len(payload), hashlib.sha256(payload).hexdigest())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write in the block, which replaces `path` if the block ends without an error.

    A reader finds the old content or the new one. Nothing is fsynced, and the temporary file is always removed.
    """
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def replace_durably(path: Path, payload: bytes, *, private: bool = True) -> FileEntry:
    """Replace a file; a reader finds the old content or the new one, also after a crash or an error."""
    with replacing(path) as temporary:
        entry = write_durably(temporary, payload, private=private)
    fsync_directory(path.parent)
    return replace(entry, name=path.name)


def seal(path: Path) -> FileEntry:
    """Fsync a file that another writer has written, and make it private."""
    with naming(path), path.open("rb+") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            os.fchmod(file.fileno(), PRIVATE_FILE)
        os.fsync(file.fileno())
    return FileEntry(path.name, path.stat().st_size, sha256(path))


def is_plain_name(name: object) -> bool:
    """Whether a name in a manifest stays in the manifest's folder: not a path, not absolute, not `..`."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def is_plain_file(path: Path) -> bool:
    """Whether it is a regular file rather than a symbolic link, a pipe or a device.

    Raises:
        FileNotFoundError: there is none.
    """
    return stat.S_ISREG(path.lstat().st_mode)


def manifest_checksum(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its own `checksum`, which protects its content like that of the files it names."""
    unsigned = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(unsigned, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hexadecimal checksum of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_directory(path: Path) -> None:
    """Make renames and new names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
