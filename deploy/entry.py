"""The entry point of `freshet`: SIGTERM and Ctrl-C are handled before anything heavy is imported.

A verb replaces these handlers by its own (`deploy/command/sigterm.py`) while it has work to finish.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # importing `typing` takes as long as everything else up to here
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

# They run until they are stopped, so a stop at any time counts as success.
_SERVING = ("train", "broker")


def main() -> NoReturn:
    """Run the command line and exit with its status, or with that of a stop if a signal came first."""
    serves = sys.argv[1:2] and sys.argv[1] in _SERVING

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0 if serves else 128 + number)

    _answer(stop)
    status: int | str | None = 0
    try:
        from deploy.cli import main as run_verb

        run_verb()
    except SystemExit as exit_:
        status = exit_.code
    ended = status if isinstance(status, int) else int(bool(status))

    def end(number: int, frame: FrameType | None) -> None:
        os._exit(ended)

    _answer(end)  # the verb has ended; only the interpreter's exit remains
    if "ray" in sys.modules and not isinstance(status, str):
        _end_directly(ended)
    sys.exit(status)


def _end_directly(status: int) -> NoReturn:
    """End without the interpreter's exit, which threads of Ray's clients can block for good on a busy machine."""
    for stream in (sys.stdout, sys.stderr):  # noqa: TID251 - nothing is written
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 1  # what was printed has not arrived
    os._exit(status)


def _answer(handler: signal._HANDLER) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
