"""Where checkpoints lie: a folder on disk, or a prefix of an object store.

Both keep the same promise: files of a checkpoint that is not committed are never listed, and `commit` makes all of
them visible at one instant. On disk that is the rename of a folder whose files were fsynced; an object store has no
rename, so there the manifest is put last.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from cluster.checkpoints.notes import LocalNotes, Notes, ObjectNotes
from retrieval.storage.durable import (
    PRIVATE_FILE,
    PRIVATE_FOLDER,
    FileEntry,
    fsync_directory,
    is_plain_file,
    make_private,
    write_durably,
)

MANIFEST = "manifest.json"
Hook = Callable[[str], None]
"""Called with the name of each step of a commit before it is taken; tests kill the process in it."""

_NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")
_HIDDEN = (".writing-", ".removing-", ".replaced-")


class StorageLocationError(ValueError):
    """A place for checkpoints that cannot be used; names the setting."""


class NotAFile(RuntimeError):
    """A link, a pipe or a device stands where a checkpoint's file should be."""


def nothing(step: str) -> None:
    """The hook of a run that nobody disturbs."""


def is_checkpoint_name(name: object) -> bool:
    """Whether a checkpoint can be called so."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def order_of(name: str) -> tuple[int, int]:
    """Step and repetition of a checkpoint's name, by which names are ordered."""
    match = _NAME.fullmatch(name)
    assert match is not None, name
    return int(match[1]), int(match[2] or 0)


class Storage(Protocol):
    """Named checkpoints, each a set of named files."""

    @property
    def where(self) -> str:
        """The place, for people."""

    def names(self) -> list[str]:
        """Committed checkpoints, oldest first; on disk also a folder whose manifest somebody took away."""

    def begin(self, name: str) -> None:
        """Make room for one that is to be written, and drop what crashes left behind (rank 0)."""

    def writing(self, name: str, file: str) -> Any:
        """Context manager of a binary file of it; the file is durable when the context is left."""

    def commit(self, name: str, manifest: bytes, at: Hook) -> None:
        """Put the manifest and make the whole visible (rank 0, after every rank has written its files)."""

    def read(self, name: str, file: str) -> pa.Buffer:
        """A file's content; FileNotFoundError if it is not there, NotAFile if it leads elsewhere."""

    def remove(self, name: str) -> None:
        """Remove a committed checkpoint; a crash on the way leaves garbage, never half of one."""

    def discard(self, name: str) -> None:
        """Remove one that will not be committed."""

    def path(self, name: str) -> Path | None:
        """Its folder, None in an object store."""

    @property
    def notes(self) -> Notes:
        """Small notes beside the checkpoints: claims (`claim.py`) and holds (`hold.py`)."""

    def drop_unfinished(self) -> None:
        """On a disk, see that nothing that is being written now can be committed any more."""


class LocalStorage:
    """A folder on a disk that all ranks see."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def where(self) -> str:
        """The folder."""
        return str(self.root)

    def names(self) -> list[str]:
        """See Storage."""
        if not self.root.is_dir():
            return []
        return sorted((p.name for p in self.root.iterdir() if _NAME.fullmatch(p.name)), key=order_of)

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
        for leftover in self.root.glob(".*step-*"):
            if leftover.name.startswith(_HIDDEN):
                going = leftover.with_name(f".removing-{uuid.uuid4().hex}-step-")
                with suppress(FileNotFoundError):  # committed just now, or removed by somebody else
                    leftover.rename(going)
                    shutil.rmtree(going, ignore_errors=True)

    def _unfinished(self, name: str) -> Path:
        return self.root / f".writing-{name}"


class ObjectStorage:
    """A prefix of an object store (S3, GCS, anything that pyarrow.fs knows), where a rename is a copy.

    Args:
        filesystem: with credentials and endpoint from the environment.
        prefix: `bucket/folder`.
        uri: what the user wrote, for messages.
    """

    def __init__(self, filesystem: fs.FileSystem, prefix: str, uri: str) -> None:
        self._files, self._prefix, self._uri = filesystem, prefix.rstrip("/"), uri

    @property
    def where(self) -> str:
        """The URI."""
        return self._uri

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
        with self._files.open_output_stream(self._object(name, MANIFEST)) as sink:
            sink.write(manifest)
        at("renamed")

    def read(self, name: str, file: str) -> pa.Buffer:
        """See Storage."""
        with self._files.open_input_file(self._object(name, file)) as source:
            return source.read_buffer()

    def remove(self, name: str) -> None:
        """See Storage: without its manifest it is garbage at once."""
        self._files.delete_file(self._object(name, MANIFEST))
        self.discard(name)

    def discard(self, name: str) -> None:
        """See Storage; `begin` may meet what a `remove` on the writing thread has not ended with."""
        self._files.delete_dir_contents(f"{self._prefix}/{name}", missing_dir_ok=True)
        marker = self._files.get_file_info(f"{self._prefix}/{name}")
        if marker.type == fs.FileType.Directory:
            with suppress(FileNotFoundError):  # the other one was first
                self._files.delete_dir(f"{self._prefix}/{name}")

    def path(self, name: str) -> Path | None:
        """See Storage."""
        return None

    @property
    def notes(self) -> Notes:
        """See Storage."""
        return ObjectNotes(self._files, self._prefix)

    def drop_unfinished(self) -> None:
        """See Storage: there is no rename, so a manifest that is being put now still counts."""

    def _prefixes(self) -> list[str]:
        entries = self._files.get_file_info(fs.FileSelector(self._prefix, allow_not_found=True))
        names = {entry.base_name for entry in entries if entry.type == fs.FileType.Directory}
        return sorted(filter(_NAME.fullmatch, names), key=order_of)

    def _object(self, name: str, file: str) -> str:
        return f"{self._prefix}/{name}/{file}"


def open_storage(location: str | Path) -> Storage:
    """The storage at a folder or at a URI such as `s3://bucket/prefix`.

    Credentials and endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and
    so on); options such as the region can stand in the URI's query.

    Raises:
        StorageLocationError: credentials in the URI, or a scheme that pyarrow.fs does not know.
    """
    text = str(location)
    if "://" not in text:
        return LocalStorage(Path(text).expanduser())
    parts = urlsplit(text)
    if parts.username or parts.password or re.search(r"(access|secret)[_-]?key", parts.query, re.IGNORECASE):
        raise StorageLocationError(
            f"train.checkpoint_path holds credentials for {parts.scheme}://{parts.hostname}; "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment instead"
        )
    try:
        filesystem, prefix = fs.FileSystem.from_uri(_with_endpoint(text))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StorageLocationError(
            f"no checkpoints can be kept at {text} (train.checkpoint_path): {error}"
        ) from error
    return ObjectStorage(filesystem, prefix, text.partition("?")[0].rstrip("/"))


def _with_endpoint(uri: str) -> str:
    """Older Arrows do not read AWS_ENDPOINT_URL themselves."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint or not uri.startswith("s3://") or "endpoint_override" in uri:
        return uri
    parts = urlsplit(endpoint)
    joint = "&" if "?" in uri else "?"
    return f"{uri}{joint}endpoint_override={parts.netloc}&scheme={parts.scheme}"


def split_location(location: str | Path) -> tuple[str, str]:
    """The storage and the name in it of one checkpoint's own location."""
    root, _, name = str(location).rstrip("/").rpartition("/")
    return (root or "."), name


class HashingSink:
    """A binary file that knows the size and SHA-256 of what went into it."""

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
        """For Arrow's sake; the owner of the file fsyncs."""

    def close(self) -> None:
        """For Arrow's sake; the owner of the file closes it."""

    def entry(self, file: str) -> FileEntry:
        """What a manifest says of the file."""
        return FileEntry(file, self._size, self._hash.hexdigest())


@dataclass(frozen=True)
class StoredFile:
    """A file of a committed checkpoint."""

    storage: Storage
    checkpoint: str
    name: str

    @property
    def stem(self) -> str:
        """Its name without the last suffix."""
        return self.name.rpartition(".")[0]

    def read(self) -> pa.Buffer:
        """The content."""
        return self.storage.read(self.checkpoint, self.name)

    def __str__(self) -> str:
        return f"{self.storage.where}/{self.checkpoint}/{self.name}"
