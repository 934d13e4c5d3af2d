"""What has changed since the last checkpoint and the last version, so that an idle run makes no more of them."""

from __future__ import annotations

from cluster.training.control import Report

_Mark = tuple[float, ...]
# Whatever becomes of a row, one of these grows.
_READ = ("rows_read", "events_quarantined", "dead_letters", "messages_skipped")


class Since:
    """Compares marks: two moments of a run with the same mark have the same state.

    Every rank sees the same totals, so the marks are the same everywhere; only rank 0 knows what was committed.
    """

    def __init__(self) -> None:
        self._step = self._catalogue = 0
        self._read: _Mark = ()
        self._saving: _Mark | None = None
        self._saved: _Mark | None = None
        self._published: _Mark | None = None

    def seen(self, step: int, totals: Report) -> None:
        """The run has come to a step; `totals` are those of all ranks."""
        self._step = step
        self._read = tuple(totals.figures[name] for name in _READ)

    def catalogue_changed(self) -> None:
        """Records of the catalogue were taken up: new, changed or deleted items and users."""
        self._catalogue += 1

    @property
    def unsaved(self) -> bool:
        """Whether the last committed checkpoint lacks something; also before a group's first one."""
        return self._saved != self._state

    @property
    def unpublished(self) -> bool:
        """Whether a version made now could differ from the last one; also before a group's first one."""
        return self._published != self._model

    def saving(self) -> None:
        """The snapshot of a checkpoint is taken: it holds what there is now, and perhaps more."""
        self._saving = self._state

    def saved(self) -> None:
        """The checkpoint that was begun is committed."""
        self._saved = self._saving

    @property
    def saved_model(self) -> bool:
        """Whether a version of the last committed checkpoint would be of what there is now."""
        return self._saved is not None and self._saved[: len(self._model)] == self._model

    def published(self) -> None:
        """A version of the last committed checkpoint is built; one that its gate refuses would be refused again."""
        assert self._saved is not None, "nothing is saved"
        self._published = self._saved[: len(self._model)]

    @property
    def _state(self) -> _Mark:
        return (self._step, self._catalogue, *self._read)

    @property
    def _model(self) -> _Mark:
        return (self._step, self._catalogue)
