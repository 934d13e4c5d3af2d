"""When and how a run is saved: dead letters first, then a checkpoint, then its offsets and report."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cluster.checkpoints.checkpoint import Checkpoint, CheckpointStore
from cluster.checkpoints.writing import Checkpointer
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.training.intake.intake import Intake
from cluster.training.intake.text_agreement import agree_on_texts
from cluster.training.last_checkpoint import commit_last
from cluster.training.progress_report import ProgressReporter
from cluster.training.since import Since
from cluster.training.state.run import TrainingRun
from cluster.training.state.worker_state import checkpointer_of
from retrieval.storage.base import Hook
from streaming.dead_letters.writer import DeadLettersDelayed
from streaming.events.position import Position
from streaming.kafka.group_offsets import GroupOffsets
from streaming.kafka.topics import BrokerUnavailable

_log = logging.getLogger(__name__)

_LETTERS_RETRY_S = 0.5


class Saving:
    """The checkpoints of one rank; what is marked collective every rank calls at the same step.

    Args:
        config: settings.
        comm: the ranks.
        store: where checkpoints go.
        intake: has dead letters of the catalogue.
        since: remembers what was saved.
        progress: reports each checkpoint.
        on_checkpoint: called with a few numbers after each attempt.
        at_snapshot: called at the instant that a checkpoint is of.
        at: fault hook, by the numbered steps of `checkpoint.py`.
    """

    def __init__(
        self,
        config: FreshetConfig,
        comm: Collectives,
        store: CheckpointStore,
        intake: Intake,
        since: Since,
        progress: ProgressReporter,
        on_checkpoint: Callable[[Mapping[str, Any]], None],
        at_snapshot: Callable[[], None],
        at: Hook,
    ) -> None:
        self._config, self._comm, self._store, self._intake = config, comm, store, intake
        self._since, self._progress, self._on_checkpoint, self._at = since, progress, on_checkpoint, at
        self._at_snapshot = at_snapshot
        self._group_offsets = GroupOffsets(config.stream)
        self._last_s = time.monotonic()
        self._letters_late_s = -math.inf
        self.newest: Checkpoint | None = None
        """The last that was committed here (rank 0)."""
        self.committed = self.tried = 0
        """How many were, and how many have come to an end, committed or not (rank 0)."""
        self._attached: tuple[TrainingRun, Checkpointer] | None = None

    def attach(self, run: TrainingRun, parent: Checkpoint | None) -> None:
        """Save this run from here on, which is in the state of `parent`, or new."""
        checkpointer = checkpointer_of(
            run, self._store, self._comm, parent, self._at, at_snapshot=self._snapshot_taken
        )
        self._attached = (run, checkpointer)

    def detach(self) -> None:
        """Let the checkpointer's thread end; what was not committed is garbage."""
        if self._attached is not None:
            self._checkpointer.close()
        self._attached = None

    @property
    def problem(self) -> str:
        """Why the last checkpoint that was tried could not be written; empty if it stands."""
        return self._checkpointer.problem

    @property
    def ready(self) -> bool:
        """Whether this rank has finished writing its part of the checkpoint, successfully or not."""
        return self._checkpointer.ready

    def due(self, now: float, *, wanted: bool = False) -> bool:
        """Whether a checkpoint should begin (rank 0); one that is `wanted` does not wait for its time."""
        waited = wanted or now - self._last_s >= self._config.train.checkpoint_every_s
        may = self._checkpointer.idle and now - self._letters_late_s >= _LETTERS_RETRY_S
        return may and waited and (wanted or self._since.unsaved)

    def begin(self) -> None:
        """Collective. Begin a checkpoint, unless dead letters are still being sent."""
        self._last_s = time.monotonic()
        self._agree_on_texts()
        if self._letters_arrived():
            self._checkpointer.begin(self._run.step)
            self._note_end()
        else:
            self._letters_late_s = self._last_s

    def copy_some(self) -> None:
        """Continue the checkpoint in progress for a few milliseconds between two steps."""
        self._checkpointer.copy_some()

    def advance(self) -> None:
        """Collective, once every rank is `ready`: continue the checkpoint in progress, or commit it."""
        if self._letters_arrived():  # what a snapshot counts as a dead letter is in its topic
            self._tell(self._checkpointer.advance())
            self._note_end()

    def commit_now(self) -> Checkpoint | None:
        """Collective. Commit a checkpoint of this very step; on rank 0 what was committed.

        Raises:
            BrokerUnavailable: dead letters could not be written for `stream.broker_patience_s`.
            CheckpointError: the storage failed.
        """
        self._agree_on_texts()
        self._wait_for_letters("stream.broker_patience_s", self._config.stream.broker_patience_s)
        committed = self._checkpointer.finish(self._run.step)
        self._tell(committed)
        return committed

    def commit_last(self, letters: tuple[str, float], storage_s: float, waiting: Callable[[], bool]) -> None:
        """Collective. The run's last checkpoint: it waits for its dead letters and for the storage.

        Args:
            letters: the setting that bounds the wait for dead letters, and the bound in seconds.
            storage_s: for so long a storage that fails is tried again.
            waiting: called before it is tried again; whether that is still wanted.
        Raises:
            BrokerUnavailable: dead letters could not be written.
            CheckpointError: the storage took no checkpoint; the same on every rank.
        """
        self._agree_on_texts()
        self._wait_for_letters(*letters)
        step = self._run.step
        self._tell(commit_last(self._checkpointer, step, self._comm, patience_s=storage_s, waiting=waiting))

    def close(self, offsets_within_s: float | None) -> None:
        """Let the threads end; offsets being sent get a number of seconds, by default all that they need."""
        self.detach()
        self._group_offsets.close(offsets_within_s)

    @property
    def _run(self) -> TrainingRun:
        assert self._attached is not None, "attach() comes first"
        return self._attached[0]

    @property
    def _checkpointer(self) -> Checkpointer:
        assert self._attached is not None, "attach() comes first"
        return self._attached[1]

    def _agree_on_texts(self) -> None:
        """Collective. No checkpoint may mix two ids."""
        config = self._config
        agree_on_texts(
            self._run.texts, self._comm, config.stream.interactions_topic, Path(config.storage_path)
        )

    def _letters_arrived(self, timeout_s: float | None = None) -> bool:
        """Collective. Whether every dead letter is in its topic; while brokers are away, checkpoints wait for them."""
        run = self._run
        run.note_gaps()
        self._intake.send_dead_letters(run)
        delayed: DeadLettersDelayed | None = None
        try:
            run.dead_letters.flush(timeout_s)
        except DeadLettersDelayed as error:
            delayed = error
            _log.warning("the checkpoint waits: %s", error)
        return not self._comm.exchange(np.array([float(delayed is not None)])).any()

    def _wait_for_letters(self, patience: str, patience_s: float) -> None:
        """Collective. `patience` is the setting that bounds the wait, for the error."""
        started = time.monotonic()
        while not self._letters_arrived(patience_s):
            waited_s = self._comm.exchange(np.array([time.monotonic() - started])).max()
            if waited_s > patience_s:
                raise BrokerUnavailable(
                    f"dead letters could not be written for {waited_s:.0f} s (setting: {patience})"
                )
            time.sleep(_LETTERS_RETRY_S)

    def _snapshot_taken(self) -> None:
        self._since.saving()
        self._at_snapshot()

    def _note_end(self) -> None:
        self.tried += self._checkpointer.idle

    def _tell(self, committed: Checkpoint | None) -> None:
        if committed is not None:
            self.newest, self.committed = committed, self.committed + 1
            self._since.saved()
            self._at("offsets")
            self._progress.checkpointed(committed)
            if not self._config.stream.parquet:
                positions = committed.manifest["positions"].items()
                self._group_offsets.tell({int(p): Position(*at) for p, at in positions})
        self._on_checkpoint(self._progress.metrics())
