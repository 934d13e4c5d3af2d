"""Follows the live version of a store and its deltas: all that was loaded is replaced by one assignment."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from retrieval.deltas.chain import DeltaChain
from retrieval.deltas.delta import Delta, DeltaError, DeltasDropped
from retrieval.versions.following import Following
from retrieval.versions.store import Version, VersionError, VersionStore

_log = logging.getLogger(__name__)
_THOROUGHLY_EVERY = 10
"""Looks of a thread for new deltas after which it also looks whether those it has still exist."""
_CATCH_UP_S, _CATCH_UP_LOOK_S = 5.0, 0.05
"""How long a thread waits for the first delta of a newer version, and how often it looks."""


class LoadedFromVersion(Protocol):
    """Anything that was loaded from one version and does not change afterwards."""

    @property
    def version(self) -> Version:
        """The version that all of it came from."""


Loaded = TypeVar("Loaded", bound=LoadedFromVersion)


@dataclass(frozen=True)
class _Place(Generic[Loaded]):
    """What was loaded, and the last delta in it."""

    loaded: Loaded
    chain: DeltaChain
    number: int
    checksum: str


class VersionFollower(Generic[Loaded]):
    """Keeps the live version of a store in memory, with the deltas that follow it.

    A reader takes `current` once and answers from that object alone, so a swap never reaches a request that has begun.

    Args:
        store: of the versions.
        load: reads a verified version. It may yield several forms of the same version, each of which serves as soon as
            it is there and has all deltas: the index on the CPU first, then its copy on a GPU.
        advance: what was loaded, after one more verified delta; without it, deltas are not followed. A DeltaError of
            it is a problem of that delta.
    Attributes:
        problem: why the next delta cannot be used; empty if nothing is known to be wrong. It is logged once.
        closed: whether `close` was called.
    """

    def __init__(
        self,
        store: VersionStore,
        load: Callable[[Version], Iterable[Loaded]],
        advance: Callable[[Loaded, Delta], Loaded] | None = None,
    ) -> None:
        self._store, self._load, self._advance = store, load, advance
        self._loading = threading.Lock()
        self._place: _Place[Loaded] | None = None
        self._followings: list[Following] = []
        self._looks = 0
        self._closing = threading.Event()
        self.problem, self.closed = "", False

    @property
    def current(self) -> Loaded | None:
        """What was loaded last; None before the first version and after `close`."""
        place = self._place
        return place.loaded if place is not None else None

    def following(self, every_s: float) -> Following:
        """Calls `refresh` from a thread, every `every_s` seconds, while the block of the returned object runs.

        A version is older than the last deltas of the one before it, until its own first delta has caught up. So that
        what was new or deleted remains so, the thread changes to a newer version with that delta, or after 5 seconds
        without one.
        """
        self._followings.append(Following(self._look, every_s))
        return self._followings[-1]

    def close(self) -> None:
        """Stop the threads that follow, and release the version in memory with its files.

        A request that has begun keeps its version until it ends.
        """
        self._closing.set()
        for following in self._followings:
            following.close()
        with self._loading:
            self.closed, self._place = True, None

    def refresh(self, *, thorough: bool = True) -> bool:
        """Load the live version if it is not the one in memory, and apply its new deltas; returns whether any is new.

        If nothing is new, this reads the store's pointer and looks for the next delta. All files of a version or delta
        are verified before it is used, so a damaged file of any part keeps the other parts out too. If the next delta
        cannot be used, what is in memory stays, and `problem` says why. If the deltas in memory were dropped from the
        store, the full version is loaded again.

        Args:
            thorough: if nothing is new, also look whether the last delta in memory still exists and none is missing.
        Raises:
            VersionError: the live version cannot be used, and the one in memory stays; or this was closed.
        """
        return self._refresh(thorough, patient=False)

    def _refresh(self, thorough: bool, patient: bool) -> bool:
        place = self._place
        if not self._is_new(self._store.live_name()) and (place is None or self._advance is None):
            return False
        with self._loading:
            if self.closed:
                raise VersionError(f"following the index versions in {self._store.where} was closed")
            while True:
                name = self._store.live_name()
                if name is None:
                    return False
                try:
                    if self._is_new(name):
                        self._load_version(name, patient)
                        return True
                    return self._apply_new(thorough)
                except DeltasDropped:
                    if self._store.live_name() == name:
                        self._load_version(name)
                        return True
                except Exception:
                    # A version that was replaced while it was read may be pruned meanwhile: then read the new one.
                    if self._store.live_name() == name:
                        raise

    def _look(self) -> bool:
        self._looks += 1
        return self._refresh(self._looks % _THOROUGHLY_EVERY == 0, patient=True)

    def _load_version(self, name: str, patient: bool = False) -> None:
        version = self._store.verify(name)
        chain = DeltaChain(self._store, version)
        for loaded in self._load(version):
            # With its deltas, because what they delete must not be served.
            place = self._after_deltas(_Place(loaded, chain, 0, version.checksum))
            if patient:
                place = self._caught_up(place)
                if self._store.live_name() != name:
                    return  # the next look loads the other one
            self._place = place

    def _caught_up(self, place: _Place[Loaded]) -> _Place[Loaded]:
        """With the first delta, if the version is newer than the one in memory and that one has deltas."""
        before, name = self._place, place.loaded.version.name
        if before is None or before.number == 0 or before.loaded.version.name >= name:
            return place
        ends_s = time.monotonic() + _CATCH_UP_S
        while place.number == 0 and time.monotonic() < ends_s and self._store.live_name() == name:
            if self._closing.wait(_CATCH_UP_LOOK_S):
                break
            place = self._after_deltas(place, thorough=False)
        return place

    def _apply_new(self, thorough: bool) -> bool:
        before = self._place
        assert before is not None
        self._place = self._after_deltas(before, thorough)
        return self._place is not before

    def _after_deltas(self, place: _Place[Loaded], thorough: bool = True) -> _Place[Loaded]:
        """After all deltas that follow, or after the last whole one."""
        if self._advance is None:
            return place
        try:
            for delta in place.chain.after(place.number, place.checksum, thorough=thorough):
                loaded = self._advance(place.loaded, delta)
                place = _Place(loaded, place.chain, delta.number, delta.checksum)
        except DeltasDropped:
            raise
        except DeltaError as error:
            if str(error) != self.problem:
                self.problem = str(error)
                _log.warning("the served index stays at delta %d: %s", place.number, self.problem)
        else:
            if thorough:
                self.problem = ""
        return place

    def _is_new(self, name: str | None) -> bool:
        current = self.current
        return name is not None and (current is None or current.version.name != name)
