"""A stop requested by a signal handler; independent of Ray, so that the handler is set before Ray is imported."""

from __future__ import annotations

import threading
from collections.abc import Callable


class StopRequest:
    """Set by a signal handler, read by code that may have to end.

    Attributes:
        status: the exit status of a process that ends cleanly because of it.
        heeded: whether a run is watching it.
        kill: kills what the run has started at once; for a signal handler.
        keep_handlers: restores the signal handlers if Ray has replaced them; on the main thread.
    """

    def __init__(self) -> None:
        self.status = 0
        self.heeded = False
        self.kill: Callable[[], None] = lambda: None
        self.keep_handlers: Callable[[], None] = lambda: None
        self._asked = threading.Event()

    def ask(self, status: int = 0) -> None:
        """Safe in a signal handler, and more than once."""
        self.status = status
        self._asked.set()

    @property
    def asked(self) -> bool:
        """Whether a stop was requested."""
        return self._asked.is_set()
