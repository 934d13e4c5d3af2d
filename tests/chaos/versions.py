"""The steps of an index version's publication and of its deltas, at which a rank can be killed, and what must hold."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.config import FreshetConfig
from cluster.deltas import committing
from cluster.deltas.live_view import LiveView
from cluster.deltas.publisher import DeltaPublisher
from cluster.deltas.snapshot import RunChanges
from cluster.publishing import building
from retrieval.deltas.chain import DeltaChain
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
_DELTA_STEPS: dict[str, tuple[Any, str]] = {
    "snapshot": (RunChanges, "take"),
    "encode": (LiveView, "encode"),
    "begin": (DeltaChain, "begin"),
    "changes": (committing, "write_changes"),
    "commit": (DeltaChain, "commit"),
}


def watch_steps(at: Callable[[str], None], of: str) -> None:
    """Call `at` with `of` and the name of each step before it is taken, in this process from now on."""
    for kind, steps in ((of, _STEPS), ("delta", _DELTA_STEPS)):
        for step, (owner, name) in steps.items():
            setattr(owner, name, _watched(getattr(owner, name), functools.partial(at, f"{kind} {step}")))
    commit_next, commit_as, put = LocalStorage.commit_next, LocalStorage.commit_as, LocalNotes.put
    end_of_turn = DeltaPublisher.end_of_turn

    def after_commit_of_delta(self: DeltaPublisher, ended: Any) -> None:
        if ended.turn is not None and ended.turn.committed is not None:
            at("delta end")
        end_of_turn(self, ended)

    def watched(describe: Any, kind: str) -> Any:
        return _watched(describe, functools.partial(at, f"{kind} manifest"))

    def before_manifest(self: LocalStorage, folder: Any, describe: Any) -> str:
        return commit_next(self, folder, watched(describe, of))

    def before_manifest_of_delta(self: LocalStorage, folder: Any, name: str, describe: Any) -> None:
        commit_as(self, folder, name, watched(describe, "delta"))

    def before_pointer(self: LocalNotes, name: str, content: bytes) -> None:
        if name == POINTER:
            at(f"{of} pointer")
        put(self, name, content)

    LocalStorage.commit_next = before_manifest  # type: ignore[method-assign]
    DeltaPublisher.end_of_turn = after_commit_of_delta  # type: ignore[method-assign]
    LocalStorage.commit_as = before_manifest_of_delta  # type: ignore[method-assign]
    LocalNotes.put = before_pointer  # type: ignore[method-assign]


def _watched(real: Callable[..., Any], before: Callable[[], None]) -> Callable[..., Any]:
    @functools.wraps(real)
    def call(*arguments: Any, **named: Any) -> Any:
        before()
        return real(*arguments, **named)

    return call


def require_whole(config: FreshetConfig) -> str | None:
    """The name of the live version; all versions, their deltas, and the pointer must be whole."""
    store = VersionStore(config.index_location)
    for name in store.names():
        problems = DeltaChain(store, store.verify(name)).verify()
        assert not any(problems.values()), problems
    live = store.current()
    return live.name if live is not None else None


def leftovers(config: FreshetConfig) -> list[str]:
    """What attempts that were cut off have left behind."""
    versions, attempts = Path(config.index_location), Path(config.storage_path) / ".publish"
    found = [*versions.glob(".*"), *versions.glob("deltas/*/.*"), *attempts.glob("*")]
    return sorted(path.name for path in found if path.name != ".lock")
