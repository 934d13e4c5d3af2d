"""The demo's stream: a data set replayed from a thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.background import Background

if TYPE_CHECKING:
    from deploy.datasets.datasets import Dataset
    from streaming.config import StreamConfig


class ReplayThread(Background):
    """A replay in the background; `check` raises its error."""

    def __init__(self, stream: StreamConfig, dataset: Dataset, seconds: float, seed: int) -> None:
        super().__init__("replay", join_s=10.0)
        self.produced = 0
        self.finished = False
        self._stream, self._dataset, self._seconds, self._seed = stream, dataset, seconds, seed
        self._error: BaseException | None = None

    def check(self) -> None:
        """Raise the replay's error, if it failed."""
        if self._error is not None:
            raise self._error

    def work(self) -> None:
        """Send the data set until all is sent or the block ends."""
        from streaming.producing.replay import replay

        try:
            result = replay(
                self._stream,
                self._dataset,
                duration_s=self._seconds,
                seed=self._seed,
                progress=self._advance,
                stop=self.ended,
            )
        except Exception as error:
            self._error = error
        else:
            self.produced = result.events
            self.finished = True

    def _advance(self, acknowledged: int) -> None:
        self.produced = acknowledged
