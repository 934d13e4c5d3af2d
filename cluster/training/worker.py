"""The loop of one rank: agree, publish, checkpoint, step. Knows nothing of Ray.

Every rank runs the same loop and takes every decision from the same exchanged reports (`control.py`), so
all of them make the same collective calls in the same order, with or without events of their own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cluster.checkpoints.checkpoint import Checkpoint, CheckpointStore
from cluster.checkpoints.manifest import CheckpointError
from cluster.checkpoints.parts.stream import saved_stream
from cluster.checkpoints.writing import Checkpointer
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.publishing.publisher import Publisher, Snapshot
from cluster.publishing.version_store import version_store
from cluster.training.control import Decision, NoStop, Report, StopNotice, agree
from cluster.training.intake.catalogue_feed import CatalogueFeed
from cluster.training.intake.intake import Intake
from cluster.training.intake.joining import join_run
from cluster.training.intake.taking import BatchTaker
from cluster.training.last_checkpoint import commit_last
from cluster.training.progress_report import ProgressReporter, rank_figures
from cluster.training.since import Since
from cluster.training.state.run import TrainingRun, partitions_of_rank
from cluster.training.state.starting_point import find_starting_point, start_from
from cluster.training.state.stream_state import Epoch
from cluster.training.state.worker_state import checkpointer_of, restore_checkpoint
from cluster.training.steps.guarded_step import GuardedStep, StepOutcome
from cluster.training.steps.quarantine import Quarantined, describe_places, poisoned, quarantine_letters
from retrieval.storage.base import Hook, nothing
from streaming.dead_letters.writer import DeadLettersDelayed
from streaming.events.position import Position
from streaming.kafka.group_offsets import GroupOffsets
from streaming.kafka.topics import BrokerUnavailable

_log = logging.getLogger(__name__)

_IDLE_WAIT_S = 0.02
_LETTERS_RETRY_S = 0.5
_STORAGE_RETRY_S = 1.0
_STOP_OFFSETS_S = 1.0


class Worker:
    """One rank of a training run, from its newest checkpoint to the end of its stream."""

    def __init__(
        self,
        config: FreshetConfig,
        comm: Collectives,
        device: torch.device,
        *,
        run_id: str = "",
        on_checkpoint: Callable[[Mapping[str, Any]], None] = lambda progress: None,
        stop: StopNotice | None = None,
        at: Hook = nothing,
    ) -> None:
        torch.set_num_threads(config.train.threads_per_worker)
        if config.stream.until_time or config.stream.parquet:  # a range has an end
            config = replace(config, train=replace(config.train, bounded=True))
        self.config, self.comm, self.device = config, comm, device
        storage = Path(config.storage_path)
        self.checkpoints = CheckpointStore(
            config.checkpoint_location,
            config.train.checkpoints_to_keep,
            claimed=config.claimed_locations,
            at=at,
        )
        self.publisher = Publisher(comm, config, self.checkpoints.check_claim)
        join_run(self.checkpoints, run_id, comm)  # first of all: who was evicted writes nothing
        self._intake = Intake(config, comm)
        self.run = self._new_run(self._intake.count_partitions())
        self.progress = ProgressReporter(storage, run_id, comm, version_store(config))
        self._group_offsets = GroupOffsets(config.stream)
        self._on_checkpoint, self._at = on_checkpoint, at
        self._notice = stop or NoStop()
        self._since = Since()
        self._resumed = False
        self._validation = np.zeros(4)
        self._validated_at = 0
        self._refused_in_a_row = 0
        self._last_step_s = self._last_checkpoint_s = self._last_publish_s = time.monotonic()

    def train(self) -> dict[str, Any]:
        """Run until the stream ends, `train.stop_after_rows`, or a stop is asked for; the last progress (rank 0)."""
        self._checkpointer = self._resume()
        self._intake.choose_range(self.run, resumed=self._resumed)
        self._feed = CatalogueFeed(self.config.stream, self.comm, self.run)
        self._intake.open(self.run)
        self._taker = BatchTaker(self.run, self._quota)
        try:
            while True:
                decision = agree(self.comm, self._report(), self.config.train)
                self._absorb(decision)
                if decision.failed:
                    self.publisher.wait()
                    raise RuntimeError("publishing failed on rank 0; see its log")
                if self._taker.in_hand and not decision.only_a_step:
                    self._step(ahead=False)  # whatever else is done finds every batch that was taken trained
                    decision = replace(decision, step=False)
                if decision.catalogue:
                    self._feed.apply(self.run)
                    self._since.catalogue_changed()
                if decision.publish:
                    self._publish()
                if decision.checkpoint:
                    self._begin_checkpoint()
                if decision.checkpoint_ready:
                    self._advance_checkpoint()
                if decision.bound:
                    self._intake.bound(self.run)
                if decision.drained and self._intake.growth is not None:
                    self._grow(self._intake.growth.partitions)
                    continue
                if decision.asked:
                    return self._stop(decision)
                if decision.stop:
                    return self._finish(decision)
                self._checkpointer.copy_some()
                if decision.step:
                    self._step(ahead=decision.ahead)
                else:
                    self.run.batcher.wait_full(self._quota, _IDLE_WAIT_S)
        finally:
            self._notice.close()
            self._checkpointer.close()
            self._group_offsets.close(_STOP_OFFSETS_S if self._notice.asked else None)
            self._intake.close()
            self.run.close()

    def _new_run(self, partitions: int) -> TrainingRun:
        mine = partitions_of_rank(partitions, self.comm.rank, self.comm.world)
        return TrainingRun.create(self.config, mine, self.comm, self.device)

    def _resume(self) -> Checkpointer:
        own = self._agreed(self.checkpoints.newest, self.checkpoints)
        self._resumed = own is not None
        if own is not None:
            spread_over = int(saved_stream(own.manifest)["partitions"])
            if spread_over != self.run.stream.partitions:
                self.run = self._new_run(spread_over)  # new partitions come after the old ones' ends
            restore_checkpoint(self.run, own, self.comm)
            _log.info("resumed from %s (step %d)", own.location, self.run.step)
        else:
            start = self._agreed(lambda: find_starting_point(self.config))
            if start is not None:
                start_from(self.run, start, self.comm)
        return checkpointer_of(self.run, self.checkpoints, self.comm, own, self._at)

    def _agreed(
        self, find: Callable[[], Checkpoint | None], store: CheckpointStore | None = None
    ) -> Checkpoint | None:
        """Rank 0 looks and verifies, so that every rank restores the same checkpoint."""
        found = find() if self.comm.rank == 0 else None
        told = self.comm.gather_objects((found.storage.location(), found.name) if found else None)[0]
        if told is None or found is not None:
            return found
        return (store or CheckpointStore(told[0])).open(told[1])

    def _grow(self, partitions: int) -> None:
        """Users move to where they belong now: by a checkpoint of this instant, which is then read again.

        If the storage does not take it, on whichever rank, the next turn of the loop tries again.
        """
        old = self.run
        self._until_letters_arrived("stream.broker_patience_s", self.config.stream.broker_patience_s)
        try:
            told = self._checkpointer.finish(old.step)
        except CheckpointError as error:
            _log.error("%s; the new partitions wait for it", error)
            time.sleep(_STORAGE_RETRY_S)
            return
        self._tell(told)
        barrier = self._agreed(lambda: told, self.checkpoints)
        assert barrier is not None
        until = {int(p): int(at[0]) for p, at in barrier.manifest["positions"].items()}
        old.close()
        self._checkpointer.close()
        self.run = self._new_run(partitions)
        restore_checkpoint(self.run, barrier, self.comm)
        self.run.notice = old.notice
        self.run.stream.epochs.append(Epoch(old.stream.partitions, until))
        self.run.progressive.recent_queries = old.progressive.recent_queries
        self._checkpointer = checkpointer_of(self.run, self.checkpoints, self.comm, None, self._at)
        self._intake.open_grown(self.run)
        self._taker = BatchTaker(self.run, self._quota)
        _log.warning(
            "%s: %d partitions are read to their ends, users have moved, %d are read from now on",
            self.config.stream.interactions_topic,
            old.stream.partitions,
            partitions,
        )

    def _report(self) -> Report:
        now = time.monotonic()
        train, batcher = self.config.train, self.run.batcher
        report = Report(
            ready_rows=batcher.ready_rows(self._quota) + self._taker.rows_in_hand,
            batch_full=float(self._taker.in_hand or batcher.wait_full(self._quota, 0.0)),
            two_full=float(self._may_take_ahead and batcher.wait_full(self._quota_ahead, 0.0)),
            finished=float(self.run.source.finished and self._intake.bounded),
            figures=rank_figures(self.run),
        )
        report.checkpoint_ready = float(self._checkpointer.ready)
        report.sample, report.hits, report.popularity_hits, report.cooccurrence_hits = self._validation
        if self.comm.rank == 0:
            report.linger_over = float(now - self._last_step_s >= train.linger_s)
            report.catalogue_waiting = float(self._feed.waiting(now))
            report.checkpoint_due = float(
                self._checkpointer.idle
                and now - self._last_checkpoint_s >= train.checkpoint_every_s
                and self._since.unsaved
            )
            report.publish_due = float(
                0 < train.publish_every_s <= now - self._last_publish_s
                and not self.publisher.busy
                and self._worth_publishing
                and self._lacks_version
            )
            report.growth_found = float(self._intake.growth_found)
            report.stop_asked = float(self._notice.asked)
            report.failed = float(self.publisher.error is not None)
        return report

    @property
    def _quota(self) -> int:
        """Rows of each partition in one global step: a function of the settings and the topic alone."""
        return max(1, self.config.train.batch_events // self.run.stream.partitions)

    @property
    def _may_take_ahead(self) -> bool:
        """A CPU would only do the same work earlier; a run that counts rows must not take more than it counts."""
        return self.device.type != "cpu" and self.config.train.stop_after_rows == 0

    @property
    def _quota_ahead(self) -> int:
        """Rows of each partition that must be ready for this step and the next; those in hand are taken already."""
        return self._quota if self._taker.in_hand else 2 * self._quota

    @property
    def _worth_publishing(self) -> bool:
        """A run that was started from a checkpoint has steps behind it before it knows of any item."""
        return self.run.step > 0 and self.run.catalogue.item_count > 0

    @property
    def _lacks_version(self) -> bool:
        """Whether the last version, if it could be written, is not of what there is now (rank 0)."""
        return self._since.unpublished or bool(self.publisher.problem)

    def _absorb(self, decision: Decision) -> None:
        self.run.curve.add(self._validated_at, decision.validation)
        self._validation = np.zeros(4)
        self._since.seen(self.run.step, decision.totals)
        self.progress.checkpoint_problem = self._checkpointer.problem
        self.progress.update(self.run, decision.totals, self.publisher)

    def _step(self, *, ahead: bool) -> None:
        run, taker = self.run, self._taker
        batch = taker.next()
        self._last_step_s = time.monotonic()
        guarded = GuardedStep(run.train_step, self.comm, self.device, run.progressive)

        def meanwhile() -> None:
            if ahead:
                taker.take_ahead(run.train_step)

        left: pa.RecordBatch | None = batch
        while left is not None:  # once, except for events that can be trained on only in smaller steps
            try:
                outcome = guarded.train(left, run.step, meanwhile)
            except Exception as error:
                error.add_note(f"in training step {run.step} of {describe_places(left)}")
                raise
            self._account_for(outcome)
            left = outcome.left
        meanwhile()  # a rank that refused the step may not have come to it: all have a batch in hand, or none

    def _account_for(self, outcome: StepOutcome) -> None:
        run = self.run
        if outcome.quarantined is not None:
            self._quarantine(outcome.quarantined)
        else:
            self._refused_in_a_row = 0
        if outcome.events == 0:
            return
        if outcome.validation is not None:
            self._validation = self._validation + outcome.validation
        self._validated_at = run.events_trained
        run.ledger.add_batch(outcome.trained)
        run.events_trained += outcome.events
        run.step += 1
        self.publisher.unpublished.add(outcome.trained.column("append_ms").flatten().to_numpy())
        self.progress.stepped(outcome.losses, outcome.events)

    def _quarantine(self, quarantined: Quarantined) -> None:
        """Nothing was learned from these events; every rank comes here for the same step."""
        run, topic = self.run, self.config.stream.dead_letters
        letters = quarantine_letters(quarantined, run.source, run.step)
        _log.error(
            "step %d could not be trained with %d of its events, of which %d of this rank go to %s: %s",
            run.step,
            quarantined.events,
            len(letters),
            topic,
            quarantined.reason,
        )
        run.dead_letters.send(letters)
        run.ledger.add_quarantined(quarantined.batch)
        self._refused_in_a_row = self._refused_in_a_row + 1 if quarantined.is_step else 0
        if self._refused_in_a_row >= self.config.train.max_poison_batches:
            run.dead_letters.flush()
            raise poisoned(self._refused_in_a_row, run.step, quarantined.reason, topic)

    def _begin_checkpoint(self) -> None:
        self._last_checkpoint_s = time.monotonic()
        if self._letters_arrived():
            self._since.saving()
            self._checkpointer.begin(self.run.step)

    def _advance_checkpoint(self) -> None:
        if self._letters_arrived():  # what a snapshot counts as a dead letter is in its topic
            self._tell(self._checkpointer.advance())

    def _letters_arrived(self, timeout_s: float | None = None) -> bool:
        """Collective. Whether every dead letter is in its topic; while brokers are away, checkpoints wait for them."""
        self.run.note_gaps()
        self._feed.send_dead_letters(self.run)
        delayed: DeadLettersDelayed | None = None
        try:
            self.run.dead_letters.flush(timeout_s)
        except DeadLettersDelayed as error:
            delayed = error
            _log.warning("the checkpoint waits: %s", error)
        return not self.comm.exchange(np.array([float(delayed is not None)])).any()

    def _until_letters_arrived(self, patience: str, patience_s: float) -> None:
        """Collective. A last checkpoint waits for its dead letters.

        Args:
            patience: the setting that bounds the wait, for the error.
            patience_s: the bound.
        Raises:
            BrokerUnavailable: the brokers stayed away for longer.
        """
        started = time.monotonic()
        while not self._letters_arrived(patience_s):
            waited_s = self.comm.exchange(np.array([time.monotonic() - started])).max()
            if waited_s > patience_s:
                raise BrokerUnavailable(
                    f"dead letters could not be written for {waited_s:.0f} s (setting: {patience})"
                )
            time.sleep(_LETTERS_RETRY_S)

    def _tell(self, committed: Checkpoint | None) -> None:
        if committed is not None:
            self._since.saved()
            self._at("offsets")
            self.progress.checkpointed(committed)
            if not self.config.stream.parquet:
                positions = committed.manifest["positions"].items()
                self._group_offsets.tell({int(p): Position(*at) for p, at in positions})
        self._on_checkpoint(self.progress.metrics())

    def _publish(self) -> None:
        snapshot = self._snapshot()
        if snapshot is not None:
            self._since.published()
        if self.comm.rank == 0 and snapshot is not None:
            self.publisher.build_in_background(snapshot)
        self._last_publish_s = time.monotonic()

    def _snapshot(self) -> Snapshot | None:
        metadata: dict[str, object] = {
            "step": self.run.step,
            "events_trained": self.run.events_trained,
            "known_items": int(self.run.catalogue.item_count),
        }
        return self.publisher.snapshot(
            self.run.model,
            self.run.table,
            self.run.catalogue,
            self.run.progressive.recent_queries,
            metadata,
        )

    def _finish(self, decision: Decision) -> dict[str, Any]:
        """The last checkpoint and the last version hold everything that was read."""
        self._until_letters_arrived("stream.broker_patience_s", self.config.stream.broker_patience_s)
        self._tell(self._commit_last(decision, self.config.train.storage_patience_s))
        if self.comm.rank == 0:
            self.publisher.wait()
        lacking = self.comm.exchange(np.array([float(self._lacks_version)]))[0, 0]
        if self._worth_publishing and lacking:
            snapshot = self._snapshot()
            if self.comm.rank == 0 and snapshot is not None:
                self.publisher.build_in_background(snapshot)
                self.publisher.wait()
        self.comm.gather_objects(None)
        self.progress.finished(self.run, decision.totals, self.publisher)
        return self.progress.last

    def _commit_last(self, decision: Decision, patience_s: float) -> Checkpoint | None:
        def waiting() -> bool:
            self.progress.checkpoint_problem = self._checkpointer.problem
            self.progress.update(self.run, decision.totals, self.publisher)
            return decision.asked or not self._notice.asked

        committed = commit_last(
            self._checkpointer, self.run.step, self.comm, patience_s=patience_s, waiting=waiting
        )
        self.progress.checkpoint_problem = ""
        return committed

    def _stop(self, decision: Decision) -> dict[str, Any]:
        """As somebody asked: a last checkpoint of what came since the one before; no version, which may take long."""
        error = ""
        try:
            if self.comm.exchange(np.array([float(self._since.unsaved)]))[0, 0]:
                patience_s = self.config.train.stop_within_s / 3
                self._until_letters_arrived("train.stop_within_s", patience_s)
                self._since.saving()
                self._tell(self._commit_last(decision, min(patience_s, self.config.train.storage_patience_s)))
        except (BrokerUnavailable, CheckpointError) as failed:
            error = f"stopped without a last checkpoint, the next run resumes from the one before: {failed}"
            _log.error("%s", error)
        self.comm.gather_objects(None)
        self.progress.stopped(self.run, decision.totals, self.publisher, error)
        return self.progress.last
