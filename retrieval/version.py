"""Index versions: immutable directories with one manifest, and one pointer to the live one.

    begin   a hidden directory `.building-…`
    commit  files fsynced, `manifest.json` (sizes, SHA-256) last, then renamed to `v00000007`
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

from retrieval.durable_files import fsync_directory, seal, sha256, write_durably

FORMAT = 1
_NAME = re.compile(r"v(\d{8,})")
_POINTER = "CURRENT"


class VersionError(RuntimeError):
    """A version is missing, damaged or of an unknown format; names the version and what is wrong."""


@dataclass(frozen=True)
class Version:
    """A committed version."""

    name: str
    path: Path
    manifest: Mapping[str, Any]


class VersionStore:
    """All versions under one folder. One writer at a time; any number of readers."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def begin(self) -> Path:
        """A fresh hidden directory to build in; removes what a crash left of earlier ones."""
        self.root.mkdir(parents=True, exist_ok=True)
        for leftover in self.root.glob(".building-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        path = self.root / f".building-{uuid.uuid4().hex}"
        path.mkdir()
        return path

    def commit(self, building: Path, described: Mapping[str, Any]) -> Version:
        """Seal the files and give the directory its name; it is not live yet."""
        files = [vars(seal(path)) for path in sorted(building.iterdir())]
        name = f"v{max((_number(n) for n in self.names()), default=0) + 1:08d}"
        manifest = {"format": FORMAT, "version": name, **described, "files": files}
        write_durably(building / "manifest.json", json.dumps(manifest, indent=1).encode())
        fsync_directory(building)
        building.rename(self.root / name)
        fsync_directory(self.root)
        return Version(name, self.root / name, manifest)

    def promote(self, name: str) -> Version:
        """Make a version live.

        Raises:
            VersionError: there is no such version.
        """
        version = self.open(name)
        temporary = self.root / f".{_POINTER}-{uuid.uuid4().hex}"
        write_durably(temporary, name.encode())
        temporary.replace(self.root / _POINTER)
        fsync_directory(self.root)
        return version

    def current(self) -> Version | None:
        """The live version, or None before the first promotion."""
        try:
            name = (self.root / _POINTER).read_text().strip()
        except FileNotFoundError:
            return None
        return self.open(name)

    def names(self) -> list[str]:
        """Committed versions, oldest first."""
        if not self.root.is_dir():
            return []
        return sorted((p.name for p in self.root.iterdir() if _NAME.fullmatch(p.name)), key=_number)

    def open(self, name: str) -> Version:
        """A version by name; its files are not read (see `verify`).

        Raises:
            VersionError: it is not there, or its format is unknown.
        """
        path = self.root / name
        try:
            manifest = json.loads((path / "manifest.json").read_bytes())
        except FileNotFoundError as error:
            known = ", ".join(self.names()) or "none"
            raise VersionError(
                f"there is no index version {name!r} in {self.root}; there are: {known}"
            ) from error
        except ValueError as error:
            raise VersionError(f"{path}/manifest.json is not valid JSON: {error}") from error
        if manifest.get("format") != FORMAT:
            raise VersionError(
                f"{path} has version format {manifest.get('format')!r}; this program reads {FORMAT}"
            )
        return Version(name, path, manifest)

    def verify(self, name: str) -> None:
        """Check size and checksum of every file.

        Raises:
            VersionError: names the first file that does not match.
        """
        version = self.open(name)
        for entry in version.manifest["files"]:
            file = version.path / entry["name"]
            if not file.is_file():
                raise VersionError(f"index version {name} is damaged: {entry['name']} is missing")
            if file.stat().st_size != entry["size"] or sha256(file) != entry["sha256"]:
                raise VersionError(
                    f"index version {name} is damaged: {entry['name']} does not match its checksum"
                )

    def prune(self, keep: int) -> None:
        """Remove the oldest versions beyond `keep`, never the live one."""
        live = self.current()
        for name in self.names()[:-keep]:
            if live is None or name != live.name:
                shutil.rmtree(self.root / name)


def _number(name: str) -> int:
    return int(name[1:])
