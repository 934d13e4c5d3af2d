"""Keeps the served model up to date from a thread, while requests are answered from the one in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable

from cluster.background import Background
from retrieval.versions.store import VersionError

_log = logging.getLogger(__name__)


class Following(Background):
    """Looks for a new version again and again while its block runs; its end waits for a load in progress.

    Args:
        refresh: loads a new version if there is one (`VersionFollower.refresh`). A version that cannot be used, or a
            storage that cannot be read, is logged once and tried again; the version in memory goes on serving.
        every_s: seconds from one look to the next.
    """

    def __init__(self, refresh: Callable[[], bool], every_s: float) -> None:
        super().__init__("following index versions")
        self._refresh, self._every_s = refresh, every_s

    def work(self) -> None:
        """Refresh until the block ends."""
        problem = ""
        while not self.ended.is_set():
            try:
                self._refresh()
                problem = ""
            except (OSError, VersionError) as error:
                if str(error) != problem:
                    problem = str(error)
                    _log.warning("the served index version stays: %s", problem)
            self.ended.wait(self._every_s)
