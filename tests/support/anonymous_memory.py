"""How much memory of its own a process needs: what is mapped from files is not counted."""

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_LOOK_EVERY_S = 0.01


def anonymous_bytes() -> int:
    """RssAnon of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon in /proc/self/status")


class AnonymousPeak:
    """The most that a block needs beyond what there is when it begins, in `bytes`, by a look every 10 ms."""

    def __init__(self) -> None:
        self.bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._before = anonymous_bytes()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.bytes = max(self.bytes, anonymous_bytes() - self._before)
            if self._ended.wait(_LOOK_EVERY_S):
                return
