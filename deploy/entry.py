"""Where the process `freshet` begins: SIGTERM and Ctrl-C are answered before anything heavy is imported.

A verb replaces this answer by its own (`deploy/command/sigterm.py`) while it has something to bring to an end.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # `typing` takes as long to import as all the rest up to here
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

# They run until they are asked to stop, so a stop is their success, at whatever moment it comes.
_SERVING = ("train", "broker")


def main() -> NoReturn:
    """Run the command line and exit with its status; with the one of a stop if a signal came first."""
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

    _answer(end)  # the verb has ended; what is left is the interpreter's own end
    sys.exit(status)


def _answer(handler: signal._HANDLER) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
