"""The steps of an index version's publication, at which a rank can be killed, and what must hold afterwards."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.config import FreshetConfig
from cluster.publishing import building
from retrieval.indexes.ivf import IvfIndex
from retrieval.storage.base import POINTER
from retrieval.storage.local import LocalStorage
from retrieval.storage.notes import LocalNotes
from retrieval.storage.owned_folder import OwnedFolders
from retrieval.versions.attempt import AttemptFiles
from retrieval.versions.store import VersionStore

_STEPS: dict[str, tuple[Any, str]] = {
    "attempt": (OwnedFolders, "make"),
    "rows": (building, "write_frozen_rows"),
    "items": (AttemptFiles, "write_items"),
    "shard": (AttemptFiles, "build_shard"),
    "save": (IvfIndex, "save"),
    "begin": (VersionStore, "begin"),
    "commit": (VersionStore, "commit"),
    "promote": (VersionStore, "promote"),
    "prune": (VersionStore, "prune"),
}
"""What is called first in each step."""


def watch_steps(at: Callable[[str], None], of: str) -> None:
    """Call `at` with `of` and the name of each step before it is taken, in this process from now on."""
    for step, (owner, name) in _STEPS.items():
        setattr(owner, name, _watched(getattr(owner, name), functools.partial(at, f"{of} {step}")))
    commit_next, put = LocalStorage.commit_next, LocalNotes.put

    def before_manifest(self: LocalStorage, folder: Any, describe: Any) -> str:
        def described(*arguments: Any) -> bytes:
            at(f"{of} manifest")
            manifest: bytes = describe(*arguments)
            return manifest

        return commit_next(self, folder, described)

    def before_pointer(self: LocalNotes, name: str, content: bytes) -> None:
        if name == POINTER:
            at(f"{of} pointer")
        put(self, name, content)

    LocalStorage.commit_next = before_manifest  # type: ignore[method-assign]
    LocalNotes.put = before_pointer  # type: ignore[method-assign]


def _watched(real: Callable[..., Any], before: Callable[[], None]) -> Callable[..., Any]:
    @functools.wraps(real)
    def call(*arguments: Any, **named: Any) -> Any:
        before()
        return real(*arguments, **named)

    return call


def require_whole(config: FreshetConfig) -> str | None:
    """The name of the live version; all versions and the pointer must be whole."""
    store = VersionStore(config.index_location)
    for name in store.names():
        store.verify(name)
    live = store.current()
    return live.name if live is not None else None


def leftovers(config: FreshetConfig) -> list[str]:
    """What attempts that were cut off have left behind."""
    versions, attempts = Path(config.index_location), Path(config.storage_path) / ".publish"
    found = [*versions.glob(".*"), *attempts.glob("*")]
    return sorted(path.name for path in found if path.name != ".lock")
