"""Storage that fails over and over is reported once, and once more when it works again."""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)


class StorageTrouble:
    """What keeps one kind of file from being written.

    Attributes:
        problem: what and why, for people; empty while it works.
    """

    def __init__(self, what: str) -> None:
        self.problem = ""
        self._what = what

    def failed(self, error: BaseException | str) -> None:
        """It did not work; the caller goes on without it and tries again later."""
        before, self.problem = self.problem, f"{self._what}: {error}"
        if not before:
            _log.error("%s; the run continues and will retry", self.problem)

    def works(self) -> None:
        """It worked."""
        if self.problem:
            _log.warning("it works again (before: %s)", self._what)
        self.problem = ""
