"""The verbs `train` and `refresh`: check first, then hand over to the cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.background import Background
from deploy.command.output import plain
from deploy.command.preflight import check_checkpoint, check_storage, check_stream
from deploy.command.sigterm import ask_on_signals
from deploy.screen.display import Display
from deploy.screen.narration import narrate
from deploy.screen.progress import parse_progress
from deploy.screen.screen import DemoView

if TYPE_CHECKING:
    from cluster.config import FreshetConfig
    from cluster.stop_request import StopRequest

POLL_S = 0.5


class ProgressFollower(Background):
    """Shows a run's `progress.json` from a thread while the trainer holds the main one."""

    def __init__(self, storage_path: Path, display: Display, stop: StopRequest) -> None:
        super().__init__("progress")
        self._storage_path, self._display, self._stop = storage_path, display, stop

    def work(self) -> None:
        """Show it until the block ends."""
        from cluster.observability.progress_file import read_progress

        # What another run left there, or still writes, is not this run's progress.
        other = (read_progress(self._storage_path) or {}).get("run_id")
        stopping = False
        while not self.ended.wait(POLL_S):
            if self._stop.asked and not stopping:
                stopping = True
                self._display.say(
                    "stopping: a last checkpoint is committed first; Ctrl-C ends at once, without"
                )
            record = read_progress(self._storage_path) or {}
            if record.get("run_id", other) != other:
                now = parse_progress(record)
                before, self._display.view.progress = self._display.view.progress, now
                self._display.view.stage = now.state
                for sentence in narrate(before, now):
                    self._display.say(sentence)
            self._display.update()


def train(config: FreshetConfig, *, take_over: bool = False) -> dict[str, Any]:
    """Train on the stream until it ends, or a signal asks to stop; returns the summary as plain data.

    With `take_over`, a run that is alive on the same storage is evicted.

    Raises:
        BrokerUnavailable, TopicMissing, StorageUnusable: found before Ray starts.
        SystemExit: with status 0, a signal came before the run began.
    """
    from cluster.stop_request import StopRequest

    stop = StopRequest()
    with ask_on_signals(stop, status=0):
        check_storage(config)
        check_stream(config)
        from cluster.launching.launcher import run_training

        view = DemoView(title="Freshet training", planned=config.train.stop_after_rows)
        display = Display(view)
        # Ray prints into the same terminal, so lines here, not panels.
        with ProgressFollower(Path(config.storage_path), display, stop):
            summary: dict[str, Any] = plain(run_training(config, stop, take_over=take_over).progress)
    return summary


def refresh(config: FreshetConfig, checkpoint: Path | None) -> dict[str, Any]:
    """Re-embed the catalogue from a checkpoint (the newest by default) and publish it as a version.

    Raises:
        NotACheckpoint, StorageUnusable: found before Ray starts.
        SystemExit: a signal came before there was a version.
    """
    from cluster.stop_request import StopRequest

    stop = StopRequest()
    with ask_on_signals(stop):
        check_storage(config)
        if checkpoint is not None:
            check_checkpoint(checkpoint)
        from cluster.launching.launcher import run_refresh

        result = run_refresh(config, checkpoint, stop)
    if result is None:
        raise SystemExit(stop.status)
    refreshed: dict[str, Any] = plain(result)
    return refreshed
