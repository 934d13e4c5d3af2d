"""Runs work in a thread while a `with` block runs."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Background(ABC):
    """Runs `work` in a daemon thread while its block runs; its end sets `ended` and joins the thread.

    Args:
        name: of the thread.
        join_s: how long the end of the block waits for the thread; None: until it has ended.

    Attributes:
        ended: set when `work` must return; `work` waits on it.
    """

    def __init__(self, name: str, *, join_s: float | None = None) -> None:
        self.ended = threading.Event()
        self._join_s = join_s
        self._thread = threading.Thread(target=self.work, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self._thread.join(self._join_s)

    @abstractmethod
    def work(self) -> None:
        """Called once, in the thread."""
