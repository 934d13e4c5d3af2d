"""Reports repeated storage failures once, and once more when storage works again."""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)


class StorageTrouble:
    """The state of writing one kind of file.

    Attributes:
        problem: what fails and why, for people; empty if writing works.
    """

    def __init__(self, what: str) -> None:
        self.problem = ""
        self._what = what

    def failed(self, error: BaseException | str) -> None:
        """Record a failure; the caller continues without the file and tries again later."""
        before, self.problem = self.problem, f"{self._what}: {error}"
        if not before:
            _log.error("%s; the run continues and will retry", self.problem)

    def works(self) -> None:
        """It worked."""
        if self.problem:
            _log.warning("it works again (before: %s)", self._what)
        self.problem = ""
