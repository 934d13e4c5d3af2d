"""Shows a run's progress while the trainer uses the main thread."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cluster.background import Background
from deploy.screen.display import Display
from deploy.screen.narration import narrate
from deploy.screen.progress import parse_progress

if TYPE_CHECKING:
    from cluster.stop_request import StopRequest

POLL_S = 0.5


class ProgressFollower(Background):
    """Shows a run's `progress.json` from a thread while the trainer uses the main one."""

    def __init__(self, storage_path: Path, display: Display, stop: StopRequest) -> None:
        super().__init__("progress")
        self._storage_path, self._display, self._stop = storage_path, display, stop

    def work(self) -> None:
        """Show it until the block ends."""
        from cluster.observability.progress_file import read_progress

        # A file that another run left or still writes is not this run's progress.
        other = (read_progress(self._storage_path) or {}).get("run_id")
        stopping = False
        while not self.ended.wait(POLL_S):
            if self._stop.asked and not stopping:
                stopping = True
                self._display.say(
                    "stopping: committing a last checkpoint first; press Ctrl-C again to end at once without it"
                )
            record = read_progress(self._storage_path) or {}
            if record.get("run_id", other) != other:
                now = parse_progress(record)
                before, self._display.view.progress = self._display.view.progress, now
                self._display.view.stage = now.state
                for sentence in narrate(before, now):
                    self._display.say(sentence)
            self._display.update()
