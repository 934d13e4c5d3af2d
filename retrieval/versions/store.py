"""Index versions: immutable directories with one manifest, and one pointer to the live one.

    begin   a hidden directory `.building-…`, locked by whoever builds in it
    commit  files fsynced, `manifest.json` (sizes, SHA-256, its own checksum) last, then renamed to `v00000007`
    promote `CURRENT` replaced by an atomic rename
A crash at any point leaves the old pointer to a whole version; what was being built is removed by the next
`begin`. Rolling back is promoting an older version.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.storage.durable import (
    fsync_directory,
    is_plain_file,
    is_plain_name,
    manifest_checksum,
    replace_durably,
    seal,
    sha256,
    write_durably,
)
from retrieval.storage.owned_folder import LOCK, OwnedFolder, OwnedFolders

FORMAT = 2
"""Format 1 had no checksum of the manifest itself; its versions are still read."""
MANIFEST = "manifest.json"
_NAME = re.compile(r"v(\d{8,})")
_POINTER = "CURRENT"


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

    def file(self, name: str) -> Path:
        """One of its files.

        Raises:
            VersionCorrupt: its manifest does not list it, so nobody can say whether it is whole.
        """
        if name not in self.files():
            raise VersionCorrupt(f"index version {self.name} is damaged: its manifest does not list {name}")
        return self.path / name

    def files(self, prefix: str = "") -> list[str]:
        """The names of its files that start so, sorted."""
        return sorted(entry["name"] for entry in self.manifest["files"] if entry["name"].startswith(prefix))


class VersionStore:
    """All versions under one folder, for any number of writers and readers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._building = OwnedFolders(root, ".building-")

    def begin(self) -> OwnedFolder:
        """A fresh hidden directory to build in; removes what crashes left behind."""
        building = self._building.make()
        with self._building.exclusive():
            self._remove_leftovers()
        return building

    def commit(self, building: OwnedFolder, described: Mapping[str, Any]) -> Version:
        """Seal the files and give the directory its name; it is not live yet."""
        files = [vars(seal(path)) for path in sorted(building.path.iterdir()) if path.name != LOCK]
        with self._building.exclusive():
            name = f"v{max((_number(n) for n in self.names()), default=0) + 1:08d}"
            # As it will be read back: a tuple comes back as a list.
            manifest = json.loads(
                json.dumps({**described, "format": FORMAT, "version": name, "files": files})
            )
            manifest["checksum"] = manifest_checksum(manifest)
            write_durably(building.path / MANIFEST, json.dumps(manifest, indent=1).encode())
            (building.path / LOCK).unlink()
            fsync_directory(building.path)
            building.path.rename(self.root / name)
            fsync_directory(self.root)
        building.lock.close()
        return Version(name, self.root / name, manifest)

    def promote(self, name: str) -> Version:
        """Make a version live.

        Raises:
            VersionError: there is no such version.
        """
        self.open(name)  # first of all: where there is no folder there is no lock either
        with self._building.exclusive():
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
        return Version(name, path, _read_manifest(name, path / MANIFEST))

    def verify(self, name: str, only: frozenset[str] | None = None) -> Version:
        """Check size and checksum of every file, or of those in `only`.

        Raises:
            VersionError: there is no such version.
            VersionCorrupt: names the first file that does not match.
        """
        version = self.open(name)
        for entry in version.manifest["files"]:
            problem = "" if only is not None and entry["name"] not in only else _problem(version.path, entry)
            if problem:
                raise VersionCorrupt(f"index version {name} is damaged: {entry['name']} {problem}")
        return version

    def prune(self, keep: int) -> None:
        """Remove the oldest versions beyond `keep`, never the live one."""
        with self._building.exclusive():
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


def _read_manifest(name: str, path: Path) -> dict[str, Any]:
    try:
        if not is_plain_file(path):
            raise VersionCorrupt(f"index version {name} is damaged: {path} is not a file but a link")
        manifest = json.loads(path.read_bytes())
        written_as = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VersionCorrupt(f"index version {name} is damaged: {path}: {error!r}") from error
    if written_as not in (1, FORMAT):
        raise VersionError(
            f"{path.parent} has version format {written_as!r}; this program reads 1 and {FORMAT}"
        )
    unsigned = written_as == 1 and "checksum" not in manifest
    if not unsigned and manifest.get("checksum") != manifest_checksum(manifest):
        raise VersionCorrupt(f"index version {name} is damaged: {path} does not match its own checksum")
    files = manifest.get("files")
    if not isinstance(files, list) or not all(map(_is_entry, files)):
        raise VersionCorrupt(
            f"index version {name} is damaged: {path} lists files that are not names in its folder"
        )
    return dict(manifest)


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict) and {"name", "size", "sha256"} <= set(entry) and is_plain_name(entry["name"])
    )


def _problem(folder: Path, entry: Mapping[str, Any]) -> str:
    """What is wrong with a file, against what the manifest says of it; empty if nothing is."""
    path = folder / entry["name"]
    try:
        if not is_plain_file(path):
            return "is not a file but a link"
    except FileNotFoundError:
        return "is missing"
    if path.stat().st_size != entry["size"] or sha256(path) != entry["sha256"]:
        return "does not match its checksum"
    return ""


def _number(name: str) -> int:
    return int(name[1:])
