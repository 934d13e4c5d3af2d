"""Index versions: immutable sets of files, each with one manifest, and one pointer to the live version.

    begin   a folder on this machine, locked by its builder
    commit  on a disk: files fsynced, `manifest.json` (sizes, SHA-256, its own checksum) last, then renamed to
            `v00000007`; in an object store: a name is reserved, the files are uploaded, the manifest is put last
    promote `CURRENT` replaced as a whole: by an atomic rename, or by the put of one object
    refuse  a version that failed a gate is committed too, with the reason in its manifest, and not promoted
A crash at any point leaves the old pointer to an intact version; a later writer removes the unfinished one. Rolling
back means promoting an older version. Checkpoints use the same storage (`retrieval.storage`). The live version can have
deltas (`retrieval.deltas`), which are dropped when another one is promoted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from retrieval.deltas.chain import remove_deltas
from retrieval.storage.base import POINTER, VERSIONS, Storage
from retrieval.storage.cache import FileCache
from retrieval.storage.committed import (
    CommittedSet,
    check_manifest,
    manifest_path,
    read_manifest,
    sealed_manifest,
)
from retrieval.storage.durable import FileEntry
from retrieval.storage.opening import open_storage
from retrieval.storage.owned_folder import OwnedFolder

_log = logging.getLogger(__name__)
FORMAT = 2
"""Format 1 had no checksum of the manifest itself; its versions are still read."""


class VersionError(RuntimeError):
    """A version is missing or of an unknown format; names the version and what is wrong."""


class VersionRefused(VersionError):
    """A gate refused the version; names the gate, the value and the bound."""


class VersionCorrupt(VersionError):
    """A file of a version is missing or does not match the manifest; names both."""


@dataclass(frozen=True)
class Version(CommittedSet):
    """A committed version; copies of its files are kept while this object exists."""

    def damaged(self, what: str) -> VersionCorrupt:
        """See CommittedSet."""
        return _corrupt(self.name, what)

    @property
    def path(self) -> Path:
        """Its folder.

        Raises:
            VersionError: it is in an object store.
        """
        path = self.storage.path(self.name)
        if path is None:
            raise VersionError(f"{self.storage.where}/{self.name} is not a folder on this machine")
        return path

    @property
    def refused(self) -> str:
        """Why its gates refused it, as a text; empty if it passed them."""
        return str(self.manifest.get("refused", ""))

    @property
    def has_index(self) -> bool:
        """Whether it can be searched; no index is built of vectors that are not finite."""
        return bool(self.manifest.get("has_index", True))


class VersionStore:
    """All versions in one folder or under one URI, for any number of writers and readers.

    Args:
        location: the folder, or a URI such as `s3://bucket/prefix`.
        cache: for copies of files in an object store; by default the user's.
    """

    def __init__(self, location: str | Path, cache: FileCache | None = None) -> None:
        self.storage = open_storage(location, VERSIONS, cache)
        self.cache = cache

    @property
    def where(self) -> str:
        """The location, for people and for another store of the same versions."""
        return self.storage.where

    @property
    def root(self) -> Path:
        """Its folder.

        Raises:
            VersionError: it is in an object store.
        """
        path = self.storage.path("")
        if path is None:
            raise VersionError(f"{self.where} is not a folder on this machine")
        return path

    def begin(self) -> OwnedFolder:
        """A new folder to build in; removes leftovers of crashes."""
        return self.storage.build()

    def commit(self, building: OwnedFolder, described: Mapping[str, Any]) -> Version:
        """Commit the files under a new name; the version is not live yet."""

        def describe(name: str, files: Sequence[FileEntry]) -> bytes:
            return sealed_manifest({**described, "format": FORMAT, "version": name}, files)

        return self.open(self.storage.commit_next(building, describe))

    def promote(self, name: str, *, refused: bool = False) -> Version:
        """Make a version live.

        Without locks, `prune` may remove the version meanwhile. One of the two always notices: `prune` checks the
        pointer after removing the manifest, and this checks the manifest after setting the pointer.

        Args:
            name: of the version.
            refused: also if a gate refused it.
        Raises:
            VersionError: there is no such version.
            VersionRefused: a gate refused it, and `refused` is false; or it has no index.
        """
        # First of all, because without the folder there is no lock either.
        _require_servable(self.open(name), refused)
        with self.storage.exclusive():
            version, before = self.open(name), self.live_name()
            if before != name:  # it may have been live earlier
                remove_deltas(self.storage, name)
            self.storage.notes.put(POINTER, name.encode())
            try:
                self.open(name)
            except VersionError:
                self._point_back(name, before)
                raise
        if before != name:
            self._drop_deltas(before)
        return version

    def rollback(self, name: str, *, refused: bool = False) -> Version:
        """Like `promote`, after checking every file of the version.

        Raises:
            VersionError, VersionRefused: see `promote`.
            VersionCorrupt: one of its files is damaged; the live version stays.
        """
        version = self.open(name)
        _require_servable(version, refused)
        version.require_stored()
        return self.promote(name, refused=refused)

    def live_name(self) -> str | None:
        """The name in the pointer; None before the first promotion."""
        return self.storage.notes.read(POINTER).decode().strip() or None

    def current(self) -> Version | None:
        """The live version, or None before the first promotion.

        Raises:
            VersionError: the version in the pointer does not exist or cannot be read.
        """
        while (name := self.live_name()) is not None:
            try:
                return self.open(name)
            except VersionError:
                # Since the pointer was read, another version may have been promoted and this one removed.
                if self.live_name() == name:
                    raise
        return None

    def names(self) -> list[str]:
        """Committed versions, oldest first."""
        return self.storage.names()

    def versions(self) -> list[Version]:
        """Committed versions, oldest first."""
        return [self.open(name) for name in self.names()]

    def open(self, name: str) -> Version:
        """A version by name; its files are not read (see `verify`).

        Raises:
            VersionError: it does not exist, or its format is unknown.
            VersionCorrupt: its manifest cannot be read.
        """
        try:
            if VERSIONS.is_name(name):
                return Version(name, _read_manifest(self.storage, name), self.storage)
        except VersionCorrupt:
            if name in self.names():
                raise
        known = ", ".join(self.names()) or "none"
        raise VersionError(f"there is no index version {name!r} in {self.where}; there are: {known}")

    def verify(self, name: str, only: Iterable[str] | None = None) -> Version:
        """Check size and checksum of every file, or of those in `only`.

        Files in an object store are copied to this machine, checked there, and kept for `Version.file`.

        Raises:
            VersionError: there is no such version.
            VersionCorrupt: names the first file that does not match.
        """
        version = self.open(name)
        version.require_whole(only)
        return version

    def prune(self, keep: int, refused: int = 2) -> None:
        """Remove the oldest versions, never the live one.

        Args:
            keep: number of versions to keep that passed their gates or cannot be read; at least one.
            refused: number of the others to keep; at least one.
        """
        with self.storage.exclusive():
            names = self.names()
            aside = set(filter(self._is_refused, names))
            passed, failed = [n for n in names if n not in aside], [n for n in names if n in aside]
            for name in passed[: -max(keep, 1)] + failed[: -max(refused, 1)]:
                if not self._is_live(name):
                    self.storage.remove(name, unless=partial(self._is_live, name))
                    remove_deltas(self.storage, name)

    def _is_refused(self, name: str) -> bool:
        try:
            return bool(self.open(name).refused)
        except VersionError:
            return False

    def _is_live(self, name: str) -> bool:
        return self.live_name() == name

    def _drop_deltas(self, left: str | None) -> None:
        """Remove the deltas of the version that is left; no one reads them, so a failure is only logged."""
        try:
            if left is not None:
                remove_deltas(self.storage, left)
        except OSError as error:
            _log.warning("the deltas of index version %s in %s were not removed: %s", left, self.where, error)

    def _point_back(self, name: str, before: str | None) -> None:
        if self.live_name() != name:
            return
        if before is None:
            self.storage.notes.remove(POINTER)
        else:
            self.storage.notes.put(POINTER, before.encode())


def _require_servable(version: Version, refused: bool) -> None:
    if version.refused and not (refused and version.has_index):
        without = "" if version.has_index else "it has no index: "
        raise VersionRefused(f"index version {version.name} was refused: {without}{version.refused}")


def _read_manifest(storage: Storage, name: str) -> dict[str, Any]:
    damaged, path = partial(_corrupt, name), manifest_path(storage, name)
    try:
        manifest = read_manifest(storage, name, damaged)
    except FileNotFoundError as error:
        raise damaged(f"{path}: {error!r}") from error
    written_as = manifest["format"]
    if written_as not in (1, FORMAT):
        raise VersionError(
            f"{storage.where}/{name} has version format {written_as!r}; this version reads 1 and {FORMAT}"
        )
    check_manifest(manifest, path, damaged, signed=written_as != 1 or "checksum" in manifest)
    return manifest


def _corrupt(name: str, what: str) -> VersionCorrupt:
    return VersionCorrupt(f"index version {name} is damaged: {what}")
