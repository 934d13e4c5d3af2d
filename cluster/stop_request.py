"""A stop that a signal handler asks for; here without Ray, so that the handler is in place before Ray is imported."""

from __future__ import annotations

import threading
from collections.abc import Callable


class StopRequest:
    """Set by a signal handler, read by whoever may have to end.

    Attributes:
        status: the exit status of a process that ends because of it, with nothing left undone.
        heeded: whether a run looks at it now.
        kill: ends what the run has started, at once; for a signal handler.
        keep_handlers: puts the signal handlers in place again, where Ray has put its own; on the main thread.
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
        """Whether somebody has asked."""
        return self._asked.is_set()
