"""The demo's stream: a data set replayed from a thread, of which the first events come before the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from cluster.background import Background

if TYPE_CHECKING:
    from deploy.datasets.datasets import Dataset
    from streaming.config import StreamConfig


FIRST_EVENTS = 500
"""A run's first step compiles and reads libraries, for up to half a minute: the stream must not wait behind it."""


class ReplayThread(Background):
    """A replay in the background; `check` raises its error.

    The first events are sent at once, the others at a steady pace once `release` was called.

    Args:
        stream: the cluster and its topics.
        dataset: that is sent.
        seconds: how long the others take.
        seed: draws the order of events of the same time.
        watch: called in the thread, with the number of events in the topic.
    """

    def __init__(
        self,
        stream: StreamConfig,
        dataset: Dataset,
        seconds: float,
        seed: int,
        watch: Callable[[int], None] = lambda produced: None,
    ) -> None:
        super().__init__("replay", join_s=10.0)
        self.produced = 0
        self.finished = False
        self.seconds = 0.0
        """How long the paced part took."""
        self._stream, self._dataset, self._seconds, self._seed = stream, dataset, seconds, seed
        self._error: BaseException | None = None
        self._watch = watch
        self._before = 0
        self._released = threading.Event()

    def release(self) -> None:
        """Let the rest of the stream begin."""
        self._released.set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self._released.set()
        super().__exit__(kind, error, trace)

    def check(self) -> None:
        """Raise the replay's error, if it failed."""
        if self._error is not None:
            raise self._error

    def work(self) -> None:
        """Send the data set until all is sent or the block ends."""
        from deploy.datasets.choosing import split_events

        first, rest = split_events(self._dataset, FIRST_EVENTS)
        try:
            self._send(first, 0.0)
            self._released.wait()
            started = time.monotonic()
            if rest.interactions.num_rows and not self.ended.is_set():
                self._send(rest, self._seconds)
            self.seconds = time.monotonic() - started
        except Exception as error:
            self._error = error
        else:
            self.finished = True

    def _send(self, dataset: Dataset, seconds: float) -> None:
        from streaming.producing.replay import replay

        sent = replay(
            self._stream,
            dataset,
            duration_s=seconds,
            seed=self._seed,
            progress=self._advance,
            stop=self.ended,
        )
        self._advance(sent.events)
        self._before = self.produced

    def _advance(self, acknowledged: int) -> None:
        self.produced = self._before + acknowledged
        self._watch(self.produced)
