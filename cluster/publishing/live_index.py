"""What is being served, as the pointer and the version's manifest say: whoever made it live, and in whichever run."""

from __future__ import annotations

from typing import Any

from retrieval.versions.store import VersionError, VersionStore

_FIGURES = ("items", "kind", "nlist", "nprobe", "recall")


class LiveIndex:
    """Looks at the pointer each time, and at a manifest once for each version."""

    def __init__(self, store: VersionStore) -> None:
        self._store = store
        self._seen: dict[str, Any] = {}

    def figures(self) -> dict[str, Any]:
        """`version` (name) and its `items`, `kind`, `nlist`, `nprobe`, `recall`; empty before the first one.

        A disk that cannot be read changes nothing: the last figures are returned again.
        """
        try:
            name = self._store.live_name()
            if name is None:
                self._seen = {}
            elif name != self._seen.get("version"):
                manifest = self._store.open(name).manifest
                self._seen = {"version": name, **{key: manifest.get(key) for key in _FIGURES}}
        except (OSError, VersionError):
            pass  # it may be on its way out; readers that need it say so
        return self._seen
