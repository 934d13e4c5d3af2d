"""Heartbeats: a note that is touched from a thread."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from cluster.background import Background
from retrieval.storage.notes import Notes

BEAT_S = 3.0
_log = logging.getLogger(__name__)


class Heartbeat(Background):
    """Touches a note from a thread while its block runs.

    Args:
        notes: where the note is.
        name: of the note.
        goes_on: called before each touch; once it returns false, the note is no longer touched.
        removes: whether the note is removed at the end of the block.
    """

    def __init__(
        self, notes: Notes, name: str, goes_on: Callable[[], bool] = lambda: True, *, removes: bool = True
    ) -> None:
        super().__init__(f"heartbeat {name}")
        self._notes, self._name, self._goes_on, self._removes = notes, name, goes_on, removes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._removes:
            with suppress(OSError):
                self._notes.remove(self._name)

    def work(self) -> None:
        """Touch the note until the block ends."""
        failed = False
        while True:
            try:
                if not self._goes_on():
                    return
                self._notes.touch(self._name)
                failed = False
            except OSError as error:
                if not failed:
                    _log.warning("no heartbeat can be written in %s: %s", self._name, error)
                failed = True
            if self.ended.wait(BEAT_S):
                return
