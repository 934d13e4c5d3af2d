"""The live version as it was before each of its last deltas, so that events are answered without having been learned.

A delta can have a step before the question about the step's events is answered. Each question applies the deltas that
have come since the last one. Models at successive deltas share all that did not change, so to keep some costs what the
deltas hold.
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.queries.served_model import ServedModel
from retrieval.deltas.delta import Delta
from retrieval.versions.follower import VersionFollower
from retrieval.versions.store import Version, VersionStore
from streaming.config import StreamConfig

_KEPT = 64
"""Half a minute of two deltas a second."""


class RecentModels:
    """Follows the live version and its deltas; nothing is loaded before the first `refresh`.

    Args:
        store: of the versions.
        stream: settings of the catalogue.
        kept: how many models of the live version to keep, the newest included.
    """

    def __init__(self, store: VersionStore, stream: StreamConfig, kept: int = _KEPT) -> None:
        self._stream, self._kept = stream, kept
        self._models: tuple[ServedModel, ...] = ()
        self._follower = VersionFollower(store, self._load, self._advance)

    def refresh(self) -> bool:
        """See `VersionFollower.refresh`."""
        return self._follower.refresh()

    def before(self, step: int) -> ServedModel | None:
        """The newest model that was trained on at most the steps before this one, from 0; None if none is kept."""
        return next((model for model in reversed(self._models) if model.steps <= step), None)

    def _load(self, version: Version) -> Iterator[ServedModel]:
        for model in ServedModel.load(version, self._stream):
            self._models = (model,)
            yield model

    def _advance(self, model: ServedModel, delta: Delta) -> ServedModel:
        advanced = model.advance(delta)
        self._models = (*self._models[1 - self._kept :], advanced)
        return advanced
