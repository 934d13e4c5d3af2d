"""The deltas of one version, in order: `<index>/deltas/v00000042/d00000001`, `d00000002`, …

Each is committed like a version (`retrieval.storage`), and names the checksum of its predecessor's manifest, so a
reader notices a missing, exchanged or damaged one. Only the live version has deltas, by one writer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from retrieval.deltas.delta import Delta, DeltaError, DeltasDropped
from retrieval.storage.base import DELTAS, Kind, Storage
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

FORMAT = 1
FOLDER = "deltas"
_ASIDE = Kind("aside-", "deltas that failed a gate", DELTAS.setting, repeats=False)
_ASIDE_TO_KEEP = 2


class Versions(Protocol):
    """The interface that a chain needs of the store of its version."""

    storage: Storage
    cache: FileCache | None

    def live_name(self) -> str | None:
        """The name of the live version."""


class DeltaChain:
    """The deltas of a version, for its one writer and any number of readers.

    Args:
        store: of the versions.
        version: one of them.
    """

    def __init__(self, store: Versions, version: CommittedSet) -> None:
        self.version = version
        self._store = store
        self._storage = _open(store, version.name, DELTAS)
        self._last: tuple[int, str] | None = None

    @property
    def where(self) -> str:
        """The location, for people."""
        return self._storage.where

    def begin(self) -> OwnedFolder:
        """A new folder to write the next delta's files in; removes leftovers of crashes."""
        return self._storage.build()

    def commit(self, folder: OwnedFolder, described: Mapping[str, Any]) -> Delta:
        """Make the files the next delta of the live version.

        Args:
            folder: from `begin`; the caller removes it after an error.
            described: goes into the manifest.
        Raises:
            DeltasDropped: the version is not live any more, or was not in between: readers start from the full version,
                without the deltas of this writer. Nothing is committed.
            OSError: the storage failed; the changes belong into the next delta too.
        """
        self._require_live()
        number, previous = self._last or self._find_last()
        self._last = None
        name = DELTAS.name_of(number + 1)

        def describe(name: str, files: Sequence[FileEntry]) -> bytes:
            place = {"version": self.version.name, "number": number + 1, "previous": previous}
            return sealed_manifest({**described, "format": FORMAT, **place}, files)

        self._storage.commit_as(folder, name, describe)
        try:
            # Without locks, the chain may be dropped meanwhile; then nothing may be left in its place.
            self._require_live()
            self._require_same(number, previous)
        except DeltaError as error:
            with suppress(OSError):
                self._storage.remove(name)
            raise DeltasDropped(
                f"delta {name} of {self.version.name} is not committed: its predecessors were dropped"
            ) from error
        delta = self._open(number + 1)
        self._last = delta.number, delta.checksum
        return delta

    def aside(self, folder: OwnedFolder, described: Mapping[str, Any], reason: str) -> str:
        """Keep the files of a delta that failed a gate, for people; they are never applied.

        Args:
            folder: from `begin`.
            described: goes into the manifest.
            reason: the failed gates, in words.
        Returns:
            The name; only the newest two of a version are kept.
        """
        storage = _open(self._store, self.version.name, _ASIDE)

        def describe(name: str, files: Sequence[FileEntry]) -> bytes:
            told = {"version": self.version.name, "refused": reason}
            return sealed_manifest({**described, "format": FORMAT, **told}, files)

        name = storage.commit_next(folder, describe)
        for old in storage.names()[:-_ASIDE_TO_KEEP]:
            storage.remove(old)
        return name

    def names(self) -> list[str]:
        """The deltas, oldest first."""
        return self._storage.names()

    def refused(self) -> dict[str, str]:
        """Why the deltas that were put aside failed their gates, by name."""
        storage = _open(self._store, self.version.name, _ASIDE)
        reasons = {}
        for name in storage.names():
            try:
                reasons[name] = str(read_manifest(storage, name, partial(self._damaged, name)).get("refused"))
            except (DeltaError, FileNotFoundError) as error:
                reasons[name] = str(error)
        return reasons

    def after(self, number: int, checksum: str = "", *, thorough: bool = True) -> Iterator[Delta]:
        """The deltas that follow, verified, oldest first; none if there is nothing new.

        The cost depends on the number of new deltas only.

        Args:
            number: of the last delta that the reader has applied; 0 if it has none.
            checksum: of that delta's manifest; without one it is read.
            thorough: if nothing follows, check that the reader's delta still exists, and that none is missing.
        Raises:
            DeltasDropped: the reader's delta is not there any more.
            DeltaError: the next delta is missing, damaged, or not the successor; names it.
        """
        previous = checksum or self._checksum_of(number)
        while True:
            try:
                delta = self._open(number + 1)
            except FileNotFoundError:
                if thorough:
                    self._require_end(number, previous)
                return
            if delta.previous != previous:
                self._require_same(number, previous)
                raise delta.damaged(
                    f"it follows a delta with the checksum {delta.previous!r}, "
                    f"{DELTAS.name_of(number) if number else 'the version'} has {previous!r}"
                )
            delta.require_whole()
            yield delta
            number, previous = delta.number, delta.checksum

    def open(self, name: str) -> Delta:
        """A delta by name; its files are not read.

        Raises:
            DeltaError: it does not exist, or its manifest cannot be read.
        """
        try:
            if DELTAS.is_name(name):
                return self._open(DELTAS.order_of(name)[0])
        except FileNotFoundError:
            pass
        raise DeltaError(f"there is no delta {name!r} in {self.where}")

    def verify(self) -> dict[str, str]:
        """What is wrong with each delta, by name: with its files, or with its place in the chain; empty if nothing."""
        problems: dict[str, str] = {}
        number, previous = 0, self.version.checksum
        for name in self.names():
            expected, number = number + 1, DELTAS.order_of(name)[0]
            before, previous = previous, ""  # unknown if this one cannot be opened
            try:
                delta = self.open(name)
                previous = delta.checksum
                if number != expected:
                    raise DeltaError(f"{DELTAS.name_of(expected)} is missing before {name}")
                if before and delta.previous != before:
                    raise delta.damaged("it does not follow its predecessor")
                delta.require_stored()
                problems[name] = ""
            except DeltaError as error:
                problems[name] = str(error)
        return problems

    def remove(self) -> None:
        """Remove all deltas of the version."""
        remove_deltas(self._store.storage, self.version.name)
        self._last = None

    def _open(self, number: int) -> Delta:
        """A delta by number; FileNotFoundError if there is none."""
        name = DELTAS.name_of(number)
        damaged = partial(self._damaged, name)
        manifest = read_manifest(self._storage, name, damaged)
        if manifest["format"] != FORMAT:
            raise damaged(f"it has delta format {manifest['format']!r}; this version reads {FORMAT}")
        check_manifest(manifest, manifest_path(self._storage, name), damaged)
        if (manifest.get("version"), manifest.get("number")) != (self.version.name, number):
            raise damaged(f"it is delta {manifest.get('number')} of {manifest.get('version')}")
        return Delta(name, manifest, self._storage)

    def _damaged(self, name: str, what: str) -> DeltaError:
        return DeltaError(f"delta {name} of index version {self.version.name} is damaged: {what}")

    def _find_last(self) -> tuple[int, str]:
        names = self.names()
        number = DELTAS.order_of(names[-1])[0] if names else 0
        return number, self._checksum_of(number)

    def _checksum_of(self, number: int) -> str:
        if number == 0:
            return self.version.checksum
        try:
            return self._open(number).checksum
        except FileNotFoundError as error:
            raise self._dropped(number) from error

    def _require_live(self) -> None:
        live = self._store.live_name()
        if live != self.version.name:
            raise DeltasDropped(f"index version {self.version.name} gets no deltas: {live} is live")

    def _require_end(self, number: int, checksum: str) -> None:
        self._require_same(number, checksum)
        with suppress(FileNotFoundError):
            self._open(number + 2)
            if number + 1 not in [DELTAS.order_of(name)[0] for name in self.names()]:
                raise self._damaged(DELTAS.name_of(number + 1), "it is missing, and deltas follow it")

    def _require_same(self, number: int, checksum: str) -> None:
        """Check that the reader's delta is still in the chain."""
        if number and self._checksum_of(number) != checksum:
            raise self._dropped(number)

    def _dropped(self, number: int) -> DeltasDropped:
        return DeltasDropped(
            f"delta {DELTAS.name_of(number)} of index version {self.version.name} was dropped from {self.where}"
        )


def remove_deltas(storage: Storage, version: str = "") -> None:
    """Remove the deltas of a version, or of all versions, from the storage of the versions."""
    storage.remove_folder(f"{FOLDER}/{version}" if version else FOLDER)


def _open(store: Versions, version: str, kind: Kind) -> Storage:
    return open_storage(store.storage.location(f"{FOLDER}/{version}"), kind, store.cache)
