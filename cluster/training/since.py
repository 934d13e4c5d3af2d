"""Tracks changes since the last checkpoint and version, so that an idle run writes no more of them."""

from __future__ import annotations

from cluster.training.control import Report

_Mark = tuple[float, ...]
# Every row read increases one of these.
_READ = ("rows_read", "events_quarantined", "dead_letters", "messages_skipped")


class Since:
    """Compares marks: a run has the same state whenever its mark is the same.

    Every rank sees the same totals, so marks are the same everywhere; only rank 0 knows what was committed.
    """

    def __init__(self) -> None:
        self._step = self._catalogue = 0
        self._read: _Mark = ()
        self._saving: _Mark | None = None
        self._saved: _Mark | None = None
        self._published: _Mark | None = None

    def trained(self, step: int) -> None:
        """Record the number of steps; before anything is decided, so that no older checkpoint passes for current."""
        self._step = step

    def seen(self, totals: Report) -> None:
        """Record what all ranks have read."""
        self._read = tuple(totals.figures[name] for name in _READ)

    def catalogue_changed(self) -> None:
        """Record that catalogue records were applied: new, changed or deleted items and users."""
        self._catalogue += 1

    @property
    def unsaved(self) -> bool:
        """Whether anything changed since the last committed checkpoint; also true before a group's first one."""
        return self._saved != self._state

    @property
    def unpublished(self) -> bool:
        """Whether a version built now could differ from the last one; also true before a group's first one."""
        return self._published != self._model

    def saving(self) -> None:
        """Record that a checkpoint's snapshot is taken; it holds at least the current state."""
        self._saving = self._state

    def saved(self) -> None:
        """Record that this checkpoint is committed."""
        self._saved = self._saving

    @property
    def saved_model(self) -> bool:
        """Whether a version of the last committed checkpoint would have the current state."""
        return self._saved is not None and self._saved[: len(self._model)] == self._model

    def published(self) -> None:
        """Record that a version of the last committed checkpoint is built; if refused, it would be refused again."""
        assert self._saved is not None, "nothing is saved"
        self._published = self._saved[: len(self._model)]

    @property
    def _state(self) -> _Mark:
        return (self._step, self._catalogue, *self._read)

    @property
    def _model(self) -> _Mark:
        return (self._step, self._catalogue)
