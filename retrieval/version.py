"""Index versions: immutable directories with one manifest, and one pointer to the live one.

    begin   a hidden directory `.building-…`, locked by whoever builds in it
    commit  files fsynced, `manifest.json` (sizes, SHA-256) last, then renamed to `v00000007`
    promote `CURRENT` replaced by an atomic rename
A crash at any point leaves the old pointer to a whole version; what was being built is removed by the next
`begin`. Rolling back is promoting an older version.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from retrieval.durable_files import fsync_directory, replace_durably, seal, sha256, write_durably

FORMAT = 1
MANIFEST = "manifest.json"
_NAME = re.compile(r"v(\d{8,})")
_POINTER = "CURRENT"
_LOCK = ".lock"


class VersionError(RuntimeError):
    """A version is missing or of an unknown format; names the version and what is wrong."""


class VersionCorrupt(VersionError):
    """A file of a version is missing or not what the manifest says; names both."""


@dataclass(frozen=True)
class Version:
    """A committed version."""

    name: str
    path: Path
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Building:
    """A directory that its owner fills; its lock goes with the owner, also by SIGKILL."""

    path: Path
    lock: IO[str]


class VersionStore:
    """All versions under one folder, for any number of writers and readers."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def begin(self) -> Building:
        """A fresh hidden directory to build in; removes what crashes left behind."""
        self.root.mkdir(parents=True, exist_ok=True)
        with self._exclusive():
            self._remove_leftovers()
            path = self.root / f".building-{uuid.uuid4().hex}"
            path.mkdir()
            lock = (path / _LOCK).open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
        return Building(path, lock)

    def commit(self, building: Building, described: Mapping[str, Any]) -> Version:
        """Seal the files and give the directory its name; it is not live yet."""
        files = [vars(seal(path)) for path in sorted(building.path.iterdir()) if path.name != _LOCK]
        with self._exclusive():
            name = f"v{max((_number(n) for n in self.names()), default=0) + 1:08d}"
            manifest = {**described, "format": FORMAT, "version": name, "files": files}
            write_durably(building.path / MANIFEST, json.dumps(manifest, indent=1).encode())
            (building.path / _LOCK).unlink()
            fsync_directory(building.path)
            building.path.rename(self.root / name)
            fsync_directory(self.root)
        building.lock.close()
        return Version(name, self.root / name, manifest)

    def abandon(self, building: Building) -> None:
        """Remove what was being built."""
        shutil.rmtree(building.path, ignore_errors=True)
        building.lock.close()

    def promote(self, name: str) -> Version:
        """Make a version live.

        Raises:
            VersionError: there is no such version.
        """
        self.open(name)  # first of all: where there is no folder there is no lock either
        with self._exclusive():
            version = self.open(name)
            replace_durably(self.root / _POINTER, name.encode())
        return version

    def rollback(self, name: str) -> Version:
        """Make an older version live again, if it is still whole.

        Raises:
            VersionError: there is no such version.
            VersionCorrupt: one of its files is damaged; the live version stays.
        """
        self.verify(name)
        return self.promote(name)

    def live_name(self) -> str | None:
        """What the pointer says, None before the first promotion."""
        try:
            return (self.root / _POINTER).read_text().strip()
        except FileNotFoundError:
            return None

    def current(self) -> Version | None:
        """The live version, or None before the first promotion.

        Raises:
            VersionError: what the pointer names is not there, or cannot be read.
        """
        while (name := self.live_name()) is not None:
            try:
                return self.open(name)
            except VersionError:
                # Another one may have been promoted, and this one removed, since the pointer was read.
                if self.live_name() == name:
                    raise
        return None

    def names(self) -> list[str]:
        """Committed versions, oldest first."""
        if not self.root.is_dir():
            return []
        return sorted((p.name for p in self.root.iterdir() if _NAME.fullmatch(p.name)), key=_number)

    def versions(self) -> list[Version]:
        """Committed versions, oldest first."""
        return [self.open(name) for name in self.names()]

    def open(self, name: str) -> Version:
        """A version by name; its files are not read (see `verify`).

        Raises:
            VersionError: it is not there, or its format is unknown.
            VersionCorrupt: its manifest cannot be read.
        """
        path = self.root / name
        if not _NAME.fullmatch(name) or not path.is_dir():
            known = ", ".join(self.names()) or "none"
            raise VersionError(f"there is no index version {name!r} in {self.root}; there are: {known}")
        try:
            manifest = json.loads((path / MANIFEST).read_bytes())
            written_as = manifest["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise VersionCorrupt(f"index version {name} is damaged: {path / MANIFEST}: {error!r}") from error
        if written_as != FORMAT:
            raise VersionError(f"{path} has version format {written_as!r}; this program reads {FORMAT}")
        return Version(name, path, manifest)

    def verify(self, name: str, only: frozenset[str] | None = None) -> Version:
        """Check size and checksum of every file, or of those in `only`.

        Raises:
            VersionError: there is no such version.
            VersionCorrupt: names the first file that does not match.
        """
        version = self.open(name)
        for entry in version.manifest["files"]:
            if only is not None and entry["name"] not in only:
                continue
            file = version.path / entry["name"]
            if not file.is_file():
                raise VersionCorrupt(f"index version {name} is damaged: {entry['name']} is missing")
            if file.stat().st_size != entry["size"] or sha256(file) != entry["sha256"]:
                raise VersionCorrupt(
                    f"index version {name} is damaged: {entry['name']} does not match its checksum"
                )
        return version

    def prune(self, keep: int) -> None:
        """Remove the oldest versions beyond `keep`, never the live one."""
        with self._exclusive():
            live = self.live_name()
            for name in self.names()[: -max(keep, 1)]:
                if name != live:
                    # Hidden first, so that a crash half-way leaves no version without its files.
                    hidden = (self.root / name).rename(self.root / f".removing-{name}-{uuid.uuid4().hex}")
                    shutil.rmtree(hidden)

    def _remove_leftovers(self) -> None:
        for removing in self.root.glob(".removing-*"):
            shutil.rmtree(removing)
        for pointer in self.root.glob(f".{_POINTER}-*"):
            pointer.unlink()
        for building in self.root.glob(".building-*"):
            if _abandoned(building / _LOCK):
                shutil.rmtree(building, ignore_errors=True)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Numbering, pointer and removal are one writer's at a time, across processes."""
        with (self.root / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _abandoned(lock: Path) -> bool:
    try:
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def _number(name: str) -> int:
    return int(name[1:])
