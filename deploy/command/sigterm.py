"""Handles SIGTERM and Ctrl-C, so that a verb stops everything it started, in order and in time.

A verb that runs until it is stopped (`train`, `broker`) then ends with status 0. A verb with work to finish (`demo`,
`replay`, `refresh`, `evaluate`) ends with 128 + the signal: 130 after Ctrl-C, 143 after SIGTERM. A second Ctrl-C ends
any of them at once, with status 130.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.stop_request import StopRequest

# A program around this one may forward a signal that the terminal has sent to both.
_SAME_PRESS_S = 0.3


@contextmanager
def stop_on_signals(*, status: int | None = None) -> Iterator[None]:
    """While the block runs, SIGTERM and SIGINT raise SystemExit, once; only on the main thread.

    Args:
        status: the exit status; by default 128 + the signal's number.
    """

    chosen: list[int] = []

    def stop(number: int) -> None:
        chosen.append(128 + number if status is None else status)
        raise SystemExit(chosen[0])

    with _handling(stop, at_once=lambda: None):
        try:
            yield
        except SystemExit:
            # Ray turns the exit of a handler that runs inside one of its calls into status 1.
            if chosen:
                raise SystemExit(chosen[0]) from None
            raise


@contextmanager
def ask_on_signals(request: StopRequest, *, status: int | None = None) -> Iterator[None]:
    """While the block runs, SIGTERM and SIGINT ask a run to stop; before it has begun they raise SystemExit.

    Args:
        request: read by the run.
        status: the exit status of a clean stop; by default 128 + the signal's number.
    """

    def stop(number: int) -> None:
        chosen = 128 + number if status is None else status
        if not request.heeded:
            raise SystemExit(chosen)
        request.ask(chosen)

    with _handling(stop, at_once=lambda: request.kill()) as install:
        request.keep_handlers = install
        yield


@contextmanager
def _handling(stop: Callable[[int], None], at_once: Callable[[], None]) -> Iterator[Callable[[], None]]:
    first_s: float | None = None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first_s
        now = time.monotonic()
        if first_s is None:
            first_s = now
            stop(number)
        elif number == signal.SIGINT and now - first_s > _SAME_PRESS_S:
            at_once()
            for stream in (sys.stdout, sys.stderr):  # noqa: TID251 - nothing is written
                with suppress(Exception):
                    stream.flush()
            os._exit(128 + number)

    def install() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handle)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    install()
    try:
        yield install
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
