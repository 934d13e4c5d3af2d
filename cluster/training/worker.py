"""The loop of one rank: agree, publish, checkpoint, step. Knows nothing of Ray.

Every rank runs the same loop and makes every decision from the same exchanged reports (`control.py`), so all ranks make
the same collective calls in the same order, with or without events of their own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.checkpoints.checkpoint import Checkpoint, CheckpointStore
from cluster.checkpoints.manifest import CheckpointError
from cluster.checkpoints.parts.stream import saved_stream
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.deltas.adopting import Restored
from cluster.deltas.publisher import DeltaPublisher
from cluster.publishing.publisher import Publisher
from cluster.queries.version_store import version_store
from cluster.training.control import Decision, NoStop, Report, StopNotice, agree
from cluster.training.intake.intake import Intake
from cluster.training.intake.joining import join_run
from cluster.training.intake.text_agreement import keep_owners
from cluster.training.progress_report import ProgressReporter, rank_figures
from cluster.training.publishing import Publishing
from cluster.training.saving import Saving
from cluster.training.served.validation import served_validation
from cluster.training.since import Since
from cluster.training.state.run import TrainingRun, partitions_of_rank
from cluster.training.state.starting_point import find_starting_point, start_from
from cluster.training.state.worker_state import restore_checkpoint
from cluster.training.stepping import Stepping
from retrieval.storage.base import Hook, nothing
from streaming.kafka.topics import BrokerUnavailable

_log = logging.getLogger(__name__)

_IDLE_WAIT_S = 0.02
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
        self.publisher = Publisher(comm, config, device, self.checkpoints.check_claim)
        join_run(
            self.checkpoints, run_id, comm
        )  # first of all, because an evicted run must not write anything
        self._intake = Intake(config, comm)
        self.run = self._new_run(self._intake.count_partitions())
        self._served = served_validation(config, comm.rank)
        self.progress = ProgressReporter(storage, run_id, comm, version_store(config), self._served)
        self.deltas = DeltaPublisher(comm, config, device, self.checkpoints.check_claim, self.progress.deltas)
        self.publisher.unpublished.share_with(self.deltas.unpublished)
        self._notice = stop or NoStop()
        self._since = Since()
        self._stepping = Stepping(
            config,
            comm,
            device,
            self.progress,
            self.publisher.unpublished,
            self._served,
            self.publisher.events,
        )
        self._saving = Saving(
            config,
            comm,
            self.checkpoints,
            self._intake,
            self._since,
            self.progress,
            on_checkpoint,
            self._snapshot_taken,
            at,
        )
        every_s = config.train.publish_every_s
        self._publishing = Publishing(self.publisher, comm, self._saving, self._since, every_s)

    def train(self) -> dict[str, Any]:
        """Run until the stream ends, `train.stop_after_rows`, or a stop request; returns the last progress (rank 0)."""
        self._open()
        try:
            while True:
                decision = agree(self.comm, self._report(), self.config.train)
                self._absorb(decision)
                if decision.failed:
                    self._raise_failure()
                if self._stepping.in_hand and not decision.only_a_step:
                    self._step(ahead=False)  # before anything else, every batch that was taken is trained
                    decision = replace(decision, step=False)
                if decision.catalogue:
                    self.deltas.records_applied(self._intake.apply_catalogue(self.run))
                    self._since.catalogue_changed()
                if decision.publish:
                    self._publish()
                if decision.delta:
                    self.deltas.start(self.run.step, self.run.events_trained)
                if decision.checkpoint:
                    self._saving.begin()
                if decision.checkpoint_ready:
                    self._saving.advance()
                if decision.bound:
                    self._intake.bound(self.run)
                if decision.drained and self._intake.growth is not None:
                    self._grow(self._intake.growth.partitions)
                    continue
                if decision.asked:
                    return self._stop(decision)
                if decision.stop:
                    return self._finish(decision)
                self._saving.copy_some()
                if decision.step:
                    self._step(ahead=decision.ahead)
                else:
                    self._stepping.wait_full(_IDLE_WAIT_S)
        finally:
            self._served.close()
            self._notice.close()
            self.deltas.close()
            self.publisher.close()
            self._saving.close(_STOP_OFFSETS_S if self._notice.asked else None)
            self._intake.close()
            self.run.close()

    def _new_run(self, partitions: int) -> TrainingRun:
        mine = partitions_of_rank(partitions, self.comm.rank, self.comm.world)
        return TrainingRun.create(self.config, mine, self.comm, self.device)

    def _open(self) -> None:
        """Bring the run to the state to resume from, and open its stream and catalogue."""
        own = self._resume()
        if own is not None:
            self._served.go_on_from(self.progress.served_before)
        keep_owners(self.run.texts, Path(self.config.storage_path))
        self._saving.attach(self.run, own)
        self._intake.choose_range(self.run, resumed=own is not None)
        if own is not None:
            self.deltas.attach(self.run.table, self.run.catalogue, Restored(own.location, self.run.step))
        records = self._intake.open_catalogue(self.run)
        if own is not None:
            self.deltas.records_applied(records)
        else:
            self.deltas.attach(self.run.table, self.run.catalogue)
        self._intake.open(self.run)
        self._stepping.attach(self.run)

    def _resume(self) -> Checkpoint | None:
        """Restore the run from its newest checkpoint, which is returned; without one, from its starting point."""
        own = self._agreed(self.checkpoints.newest, self.checkpoints)
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
        return own

    def _agreed(
        self, find: Callable[[], Checkpoint | None], store: CheckpointStore | None = None
    ) -> Checkpoint | None:
        """The newest checkpoint, found and verified by rank 0, so that every rank restores the same one."""
        found = find() if self.comm.rank == 0 else None
        told = self.comm.gather_objects((found.storage.location(), found.name) if found else None)[0]
        if told is None or found is not None:
            return found
        return (store or CheckpointStore(told[0])).open(told[1])

    def _grow(self, partitions: int) -> None:
        """Move users to their new partitions by committing a checkpoint now and reading it again.

        If the storage fails on any rank, the next iteration of the loop tries again.
        """
        old = self.run
        try:
            committed = self._saving.commit_now()
        except CheckpointError as error:
            _log.error("%s; the new partitions wait for it", error)
            time.sleep(_STORAGE_RETRY_S)
            return
        barrier = self._agreed(lambda: committed, self.checkpoints)
        assert barrier is not None
        until = {int(p): int(at[0]) for p, at in barrier.manifest["positions"].items()}
        old.close()
        self._saving.detach()
        self.run = self._new_run(partitions)
        restore_checkpoint(self.run, barrier, self.comm)
        keep_owners(self.run.texts, Path(self.config.storage_path))
        self.run.succeed(old, until)
        self._saving.attach(self.run, None)
        self.deltas.attach(self.run.table, self.run.catalogue)
        self._intake.open_grown(self.run)
        self._stepping.attach(self.run)
        _log.warning(
            "%s: %d partitions are read to their ends, users have moved, %d are read from now on",
            self.config.stream.interactions_topic,
            old.stream.partitions,
            partitions,
        )

    def _report(self) -> Report:
        run, steps = self.run, self._stepping
        self._since.trained(run.step)
        report = Report(
            ready_rows=steps.ready_rows,
            batch_full=float(steps.batch_full),
            two_full=float(steps.two_full),
            finished=float(run.source.finished and self._intake.bounded),
            figures=rank_figures(run),
        )
        report.checkpoint_ready = float(self._saving.ready)
        report.failed = float((self.publisher.error or self.deltas.error) is not None)
        report.delta_ready = float(self.deltas.ready)
        report.sample, report.hits, report.popularity_hits, report.cooccurrence_hits = steps.validation
        if self.comm.rank == 0:
            self._add_wishes(report)
        return report

    def _add_wishes(self, report: Report) -> None:
        """The requests that only rank 0 makes."""
        now = time.monotonic()
        report.linger_over = float(now - self._stepping.last_step_s >= self.config.train.linger_s)
        report.catalogue_waiting = float(self._intake.catalogue_waiting(now))
        self._consider_refresh(now)
        self._publishing.consider(self.run, now)
        report.delta_due = float(self.deltas.due(now, self.publisher.published))
        report.checkpoint_due = float(self._saving.due(now, wanted=self._publishing.wants_checkpoint))
        report.publish_due = float(self._publishing.ready)
        report.growth_found = float(self._intake.growth_found)
        report.stop_asked = float(self._notice.asked)

    def _snapshot_taken(self) -> None:
        self.publisher.cover()
        self.deltas.checkpoint_taken()

    def _publish(self) -> None:
        if self._saving.newest is not None:
            self.deltas.version_begun(self._saving.newest.location)
        self._publishing.publish(self.run)

    def _consider_refresh(self, now: float) -> None:
        """Tell the deltas what was committed, and ask for the full refresh that they need (rank 0)."""
        newest = self._saving.newest
        if newest is not None:
            self.deltas.checkpoint_committed(newest.location)
        reason = self.deltas.take_refresh()
        if reason:
            self._publishing.ask(reason)
        if self.deltas.limit:
            self._publishing.ask_in_time(self.deltas.limit, now)
        self.progress.deltas.refresh = self._publishing.reason

    def _raise_failure(self) -> None:
        for error in (self.publisher.error, self.deltas.error):
            if error is not None:
                raise error
        raise RuntimeError("publishing failed on another rank; see its log")

    def _absorb(self, decision: Decision) -> None:
        self.run.curve.add(self._stepping.validated_at, decision.validation)
        self._stepping.forget_validation()
        self._since.seen(decision.totals)
        self.progress.checkpoint_problem = self._saving.problem
        self.progress.update(self.run, decision.totals, self.publisher)

    def _step(self, *, ahead: bool) -> None:
        self._stepping.step(ahead=ahead)

    def _finish(self, decision: Decision) -> dict[str, Any]:
        """Commit the last checkpoint and publish the last version, which have everything that was read."""
        letters = "stream.broker_patience_s", self.config.stream.broker_patience_s
        self._commit_last(decision, letters, self.config.train.storage_patience_s)
        self.deltas.wait()
        self._publishing.publish_last(self.run)
        self.comm.gather_objects(None)
        self.progress.finished(self.run, decision.totals, self.publisher)
        return self.progress.last

    def _commit_last(self, decision: Decision, letters: tuple[str, float], storage_s: float) -> None:
        def waiting() -> bool:
            self.progress.checkpoint_problem = self._saving.problem
            self.progress.update(self.run, decision.totals, self.publisher)
            return decision.asked or not self._notice.asked

        self._saving.commit_last(letters, storage_s, waiting)
        self.progress.checkpoint_problem = ""

    def _stop(self, decision: Decision) -> dict[str, Any]:
        """Stop on request: a last checkpoint of everything since the previous one; no version, which may take long."""
        error = ""
        try:
            if self.comm.exchange(np.array([float(self._since.unsaved)]))[0, 0]:
                patience_s = self.config.train.stop_within_s / 3
                letters = "train.stop_within_s", patience_s
                self._commit_last(decision, letters, min(patience_s, self.config.train.storage_patience_s))
        except (BrokerUnavailable, CheckpointError) as failed:
            error = f"stopped without a last checkpoint, the next run resumes from the one before: {failed}"
            _log.error("%s", error)
        self.comm.gather_objects(None)
        self.progress.stopped(self.run, decision.totals, self.publisher, error)
        return self.progress.last
