"""The verbs `train` and `refresh`: check first, then hand over to the cluster."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from deploy.display import Display
from deploy.narration import narrate
from deploy.output import plain
from deploy.preflight import check_checkpoint, check_storage, check_stream
from deploy.progress import parse_progress
from deploy.screen import DemoView

if TYPE_CHECKING:
    from cluster.config import FreshetConfig

POLL_S = 0.5


class ProgressFollower:
    """Shows a run's `progress.json` from a thread while the trainer holds the main one."""

    def __init__(self, storage_path: Path, display: Display) -> None:
        self._storage_path = storage_path
        self._display = display
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        from cluster.training.telemetry import read_progress

        # What another run left there, or still writes, is not this run's progress.
        other = (read_progress(self._storage_path) or {}).get("run_id")
        while not self._ended.wait(POLL_S):
            record = read_progress(self._storage_path) or {}
            if record.get("run_id", other) != other:
                now = parse_progress(record)
                before, self._display.view.progress = self._display.view.progress, now
                self._display.view.stage = now.state
                for sentence in narrate(before, now):
                    self._display.say(sentence)
            self._display.update()


def train(config: FreshetConfig, *, take_over: bool = False) -> dict[str, Any]:
    """Train on the stream until it ends (or for ever); returns the summary as plain data.

    With `take_over`, a run that is alive on the same storage is evicted.

    Raises:
        BrokerUnavailable, TopicMissing, StorageUnusable: found before Ray starts.
    """
    check_storage(config)
    check_stream(config)
    from cluster.launcher import run_training

    view = DemoView(title="Freshet training", planned=config.train.stop_after_rows)
    display = Display(view)
    # Ray prints into the same terminal, so lines here, not panels.
    with ProgressFollower(Path(config.storage_path), display):
        summary: dict[str, Any] = plain(run_training(config, take_over=take_over).progress)
    return summary


def refresh(config: FreshetConfig, checkpoint: Path | None) -> dict[str, Any]:
    """Re-embed the catalogue from a checkpoint (the newest by default) and publish it as a version.

    Raises:
        NotACheckpoint, StorageUnusable: found before Ray starts.
    """
    check_storage(config)
    if checkpoint is not None:
        check_checkpoint(checkpoint)
    from cluster.launcher import run_refresh

    result: dict[str, Any] = plain(run_refresh(config, checkpoint))
    return result
