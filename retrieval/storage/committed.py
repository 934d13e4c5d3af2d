"""A committed set of files as its manifest describes it: opening, copying to this machine, verifying."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retrieval.storage.base import MANIFEST, DamagedFile, LocalCopy, NotAFile, Storage
from retrieval.storage.durable import FileEntry, is_plain_name, manifest_checksum
from retrieval.storage.files import file_problem

Damaged = Callable[[str], Exception]
"""Returns the error to raise, given what is wrong with a set."""


@dataclass(frozen=True)
class CommittedSet:
    """A committed set; copies of its files are kept while this object exists."""

    name: str
    manifest: Mapping[str, Any]
    storage: Storage = field(compare=False, repr=False)
    _copies: dict[str, LocalCopy] = field(default_factory=dict, init=False, compare=False, repr=False)

    def damaged(self, what: str) -> Exception:
        """The error that says what is wrong with a file of it."""
        raise NotImplementedError

    def file(self, name: str) -> Path:
        """One of its files, on this machine; from an object store it is copied once, and checked.

        Raises:
            Exception: `damaged`: its manifest does not list the file, so it cannot be verified; or the file to be
                copied does not match the manifest.
        """
        if name not in self._copies:
            entry = next((entry for entry in self.entries if entry["name"] == name), None)
            if entry is None:
                raise self.damaged(f"its manifest does not list {name}")
            try:
                copy = self.storage.copy_here(self.name, FileEntry(name, entry["size"], entry["sha256"]))
            except FileNotFoundError as error:
                raise self.damaged(f"{name} is missing") from error
            except DamagedFile as error:
                raise self.damaged(str(error)) from error
            self._copies[name] = copy
        return self._copies[name].path

    def files(self, prefix: str = "") -> list[str]:
        """The names of its files with this prefix, sorted."""
        return sorted(entry["name"] for entry in self.entries if entry["name"].startswith(prefix))

    @property
    def entries(self) -> Sequence[Mapping[str, Any]]:
        """The manifest's entry for each file: `name`, `size`, `sha256`."""
        entries: Sequence[Mapping[str, Any]] = self.manifest["files"]
        return entries

    @property
    def checksum(self) -> str:
        """SHA-256 of its manifest."""
        return str(self.manifest.get("checksum") or manifest_checksum(self.manifest))

    def require_whole(self, only: Iterable[str] | None = None) -> None:
        """Check size and checksum of every file, or of those in `only`.

        Files in an object store are copied to this machine, checked there, and kept for `file`.

        Raises:
            Exception: `damaged`, with the first file that does not match.
        """
        wanted = frozenset(self.files() if only is None else only)
        if self.storage.path(self.name) is not None:
            self.require_stored(wanted)
        for file in sorted(wanted.intersection(self.files())):
            self.file(file)

    def require_stored(self, only: frozenset[str] | None = None) -> None:
        """Like `require_whole`, in the storage: nothing is copied."""
        for entry in self.entries:
            if only is None or entry["name"] in only:
                problem = file_problem(self.storage, self.name, entry)
                if problem:
                    raise self.damaged(f"{entry['name']} {problem}")


def sealed_manifest(described: Mapping[str, Any], files: Sequence[FileEntry]) -> bytes:
    """A manifest with its files and its own checksum, as stored."""
    # As it will be read back: a tuple comes back as a list.
    manifest = json.loads(json.dumps({**described, "files": [vars(entry) for entry in files]}))
    return json.dumps(manifest | {"checksum": manifest_checksum(manifest)}, indent=1).encode()


def read_manifest(storage: Storage, name: str, damaged: Damaged) -> dict[str, Any]:
    """The manifest of a set as stored, with a `format`; see `check_manifest`.

    Raises:
        FileNotFoundError: there is none.
        Exception: `damaged`: it cannot be read.
    """
    path = manifest_path(storage, name)
    try:
        manifest = json.loads(storage.read(name, MANIFEST).to_pybytes())
        manifest["format"]
    except FileNotFoundError:
        raise
    except NotAFile as error:
        raise damaged(f"{path} is not a file but a link") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(f"{path}: {error!r}") from error
    return dict(manifest)


def check_manifest(manifest: Mapping[str, Any], path: str, damaged: Damaged, *, signed: bool = True) -> None:
    """Check a manifest's own checksum, and that its files are in its folder.

    Raises:
        Exception: `damaged`.
    """
    if signed and manifest.get("checksum") != manifest_checksum(manifest):
        raise damaged(f"{path} does not match its own checksum")
    files = manifest.get("files")
    if not isinstance(files, list) or not all(map(_is_entry, files)):
        raise damaged(f"{path} lists files that are not names in its folder")


def manifest_path(storage: Storage, name: str) -> str:
    """Where a set's manifest is, for people."""
    return f"{storage.where}/{name}/{MANIFEST}"


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict) and {"name", "size", "sha256"} <= set(entry) and is_plain_name(entry["name"])
    )
