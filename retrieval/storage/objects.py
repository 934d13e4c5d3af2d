"""Sets of files under a prefix of an object store, which has no rename: there the manifest is put last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pyarrow as pa
from pyarrow import fs

from retrieval.storage.base import CHECKPOINTS, MANIFEST, Hook, Kind
from retrieval.storage.notes import Notes, ObjectNotes


class ObjectStorage:
    """A prefix of an object store (S3, GCS, anything that pyarrow.fs knows), where a rename is a copy.

    Args:
        filesystem: with credentials and endpoint from the environment.
        prefix: `bucket/folder`.
        uri: what the user wrote, for messages.
        kind: what it holds.
    """

    def __init__(self, filesystem: fs.FileSystem, prefix: str, uri: str, kind: Kind = CHECKPOINTS) -> None:
        self._files, self._prefix, self._uri, self.kind = filesystem, prefix.rstrip("/"), uri, kind

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
        return self.kind.in_order({e.base_name for e in entries if e.type == fs.FileType.Directory})

    def _object(self, name: str, file: str) -> str:
        return f"{self._prefix}/{name}/{file}"
