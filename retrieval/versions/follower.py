"""Follows the live version of a store: all that was loaded from a version is replaced by one assignment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from retrieval.versions.following import Following
from retrieval.versions.store import Version, VersionError, VersionStore


class LoadedFromVersion(Protocol):
    """Anything that was loaded from one version and does not change afterwards."""

    @property
    def version(self) -> Version:
        """The version that all of it came from."""


Loaded = TypeVar("Loaded", bound=LoadedFromVersion)


class VersionFollower(Generic[Loaded]):
    """Keeps the live version of a store in memory.

    A reader takes `current` once and answers from that object alone, so a swap never reaches a request that has begun.

    Args:
        store: of the versions.
        load: reads a verified version. It may yield several forms of the same version, each of which serves as soon as
            it is there: the index on the CPU first, then its copy on a GPU.
    """

    def __init__(self, store: VersionStore, load: Callable[[Version], Iterable[Loaded]]) -> None:
        self._store, self._load = store, load
        self._loading = threading.Lock()
        self._current: Loaded | None = None
        self._followings: list[Following] = []
        self.closed = False

    @property
    def current(self) -> Loaded | None:
        """What was loaded last; None before the first version and after `close`."""
        return self._current

    def following(self, every_s: float) -> Following:
        """Calls `refresh` from a thread, every `every_s` seconds, while the block of the returned object runs."""
        self._followings.append(Following(self.refresh, every_s))
        return self._followings[-1]

    def close(self) -> None:
        """Stop the threads that follow, and release the version in memory with its files.

        A request that has begun keeps its version until it ends.
        """
        for following in self._followings:
            following.close()
        with self._loading:
            self.closed, self._current = True, None

    def refresh(self) -> bool:
        """Load the live version if it is not the one in memory; returns whether it changed.

        If nothing is new, this reads the store's pointer and nothing else. All files of a version are verified before
        it is loaded, so a damaged file of any part keeps the other parts out too.

        Raises:
            VersionError: the live version cannot be used, and the one in memory stays; or this was closed.
        """
        if not self._is_new(self._store.live_name()):
            return False
        with self._loading:
            if self.closed:
                raise VersionError(f"following the index versions in {self._store.where} was closed")
            while True:
                name = self._store.live_name()
                if name is None or not self._is_new(name):
                    return False
                try:
                    for loaded in self._load(self._store.verify(name)):
                        self._current = loaded
                    return True
                except Exception:
                    # A version that was replaced while it was read may be pruned meanwhile: then read the new one.
                    if self._store.live_name() == name:
                        raise

    def _is_new(self, name: str | None) -> bool:
        current = self._current
        return name is not None and (current is None or current.version.name != name)
