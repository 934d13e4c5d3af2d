"""Looks for new versions and deltas from a thread, while searches use the version in memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from retrieval.deltas.delta import DeltaError
from retrieval.versions.store import VersionError

_log = logging.getLogger(__name__)


class Following:
    """Loads each new version and delta while its block runs; leaving the block waits for a load in progress.

    A version that cannot be used, or storage that cannot be read, is logged once and tried again; what is in memory
    stays.

    Args:
        refresh: loads what is new (`VersionFollower.refresh`).
        every_s: seconds between two looks.
    """

    def __init__(self, refresh: Callable[[], bool], every_s: float) -> None:
        self._refresh, self._every_s = refresh, every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="following index versions", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread, and wait until it has ended."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        problem = ""
        while not self._ended.is_set():
            try:
                self._refresh()
                problem = ""
            except (OSError, VersionError, DeltaError) as error:
                if str(error) != problem:
                    problem = str(error)
                    _log.warning("the served index version stays: %s", problem)
            self._ended.wait(self._every_s)
