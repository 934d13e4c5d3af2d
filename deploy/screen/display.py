"""Displays a running verb: live panels on a terminal, lines in a log or a pipe."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.live import Live

from deploy.command.terminal import Terminal
from deploy.command.times import local_time
from deploy.screen.screen import DemoView, plain_line, render

LINE_EVERY_S = 5.0


class Display:
    """Shows a `DemoView`, which the caller changes in place, and prints sentences with their time."""

    def __init__(self, view: DemoView, console: Terminal | None = None) -> None:
        self.view = view
        self.console = console or Terminal(soft_wrap=True)
        self._started = time.monotonic()
        self._last_line = -LINE_EVERY_S
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(render(self.view), console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.update()
        if self._live:
            self._live.stop()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the display was created."""
        return time.monotonic() - self._started

    def stage(self, name: str) -> None:
        """Name the current phase."""
        self.view.stage = name
        self.update()

    def say(self, sentence: str) -> None:
        """Report an event."""
        now = local_time(time.time())
        self.view.messages.append(f"{now[11:19]}  {sentence}")
        if self._live is None:
            self.console.print(f"{now}  {sentence}")
        self.update()

    def update(self) -> None:
        """Show the current view: at once on a terminal, else as a line every 5 s."""
        self.view.elapsed_s = self.elapsed_s
        if self._live:
            self._live.update(render(self.view))
        elif self.view.progress.step and self.elapsed_s - self._last_line >= LINE_EVERY_S:
            self._last_line = self.elapsed_s
            self.console.print(f"{local_time(time.time())}  {plain_line(self.view)}")
