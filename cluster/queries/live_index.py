"""The live version by the pointer and its manifest, whichever process or run promoted it."""

from __future__ import annotations

from typing import Any

from retrieval.versions.store import VersionError, VersionStore

_FIGURES = ("items", "kind", "nlist", "nprobe", "recall")


class LiveIndex:
    """Reads the pointer each time, and a manifest once per version."""

    def __init__(self, store: VersionStore) -> None:
        self._store = store
        self._seen: dict[str, Any] = {}

    def figures(self) -> dict[str, Any]:
        """`version` (name) and its `items`, `kind`, `nlist`, `nprobe`, `recall`; empty before the first one.

        If the disk cannot be read, the last figures are returned again.
        """
        try:
            name = self._store.live_name()
            if name is None:
                self._seen = {}
            elif name != self._seen.get("version"):
                manifest = self._store.open(name).manifest
                self._seen = {"version": name, **{key: manifest.get(key) for key in _FIGURES}}
        except (OSError, VersionError):
            pass  # it may just be removed; readers that need it report it
        return self._seen
