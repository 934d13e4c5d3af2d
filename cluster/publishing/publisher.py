"""From a committed checkpoint to a live index version, beside training.

    snapshot of a checkpoint      everything trained until now is in it (`cover`)
    its commit                    ► `start`, at the same step on every rank; one at a time
    a thread of each rank         tells the others its recent queries and append times, then builds: itself where the
                                  catalogue is small, else by a process beside the worker (`builder_process.py`)

So the live version is always a state that a restarted run resumes from. Storage that fails and a builder that is lost
cost the version, not the run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from cluster.checkpoints.checkpoint import Checkpoint
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.observability.freshness import Freshness, UnpublishedAppends
from cluster.publishing.attempt import Attempt, Outcome, make_version
from cluster.publishing.builder_process import BuilderLost, BuilderProcess
from cluster.publishing.building import Questions
from cluster.publishing.quality import RecentEvents
from cluster.queries.towers import new_towers
from cluster.queries.version_store import version_store
from cluster.storage_trouble import StorageTrouble
from retrieval.ranks import OtherRankError
from retrieval.storage.owned_folder import OwnedFolder, OwnedFolders
from retrieval.versions.publish import PublishReport
from retrieval.versions.store import VersionError
from streaming.arrays import Float32Array, Int64Array

_PATIENCE = timedelta(minutes=10)
"""How long a rank's thread waits for the others, for example for rank 0's part of a small catalogue."""
_CLOSE_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Share:
    """A rank's message to the others; only rank 0 names the checkpoint."""

    append_ms: Int64Array
    location: str = ""
    checkpoint: str = ""
    items: int = 0


class Publisher:
    """Publishes the index versions of one rank's run, with the other ranks.

    Args:
        comm: the ranks. Collective.
        config: settings; versions go to `train.index_path`, by default to `storage_path/index`.
        device: that encodes.
        check: called on rank 0 before a version is begun and before it goes live; raises if it must not.

    Creating one draws from torch's default generator.
    """

    def __init__(
        self,
        comm: Collectives,
        config: FreshetConfig,
        device: torch.device,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.store = version_store(config)
        self.unpublished = UnpublishedAppends()
        """Append times of the events trained since the last snapshot of a checkpoint."""
        self.events = RecentEvents()
        """The last events that this rank sampled, for the quality gate."""
        self.freshness = Freshness()
        self.last: PublishReport | None = None
        self.published = 0
        self.error: BaseException | None = None
        """An error that is not the storage's; `wait` raises it."""
        self._comm, self._config, self._check = comm.beside(_PATIENCE), config, check
        self._device, self._towers = device, new_towers(config, device)
        self._covered, self._covering = UnpublishedAppends(), threading.Lock()
        self._events_covered = 0
        self._trouble = StorageTrouble("index versions cannot be written")
        self._meetings = OwnedFolders(Path(config.storage_path) / ".publish", "builders-")
        self._thread: threading.Thread | None = None
        self._process: BuilderProcess | None = None
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether a version is being built."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def problem(self) -> str:
        """Why no versions can be written at present (rank 0); empty if they can."""
        return self._trouble.problem

    def cover(self) -> None:
        """Record that a snapshot for a checkpoint is taken; it has everything trained until now."""
        self._events_covered = self.events.added
        self._cover(self.unpublished.drain())

    def start(self, checkpoint: Checkpoint | None, queries: Sequence[Float32Array], items: int) -> None:
        """Collective. Build a version of a checkpoint while training continues.

        Args:
            checkpoint: the newest one; on rank 0.
            queries: float32 (n, D) each, the recent query vectors of this rank.
            items: number of known items; on rank 0.
        """
        if self._thread is not None:
            self._thread.join()  # of another rank it may be a moment behind
        with self._covering:
            appends = self._covered.drain()
        chosen = [np.zeros((0, self._config.model.dim), np.float32), *queries]
        questions = Questions(np.concatenate(chosen), events=self.events.batches())
        new_events = partial(self.events.since, self._events_covered)
        arguments = (checkpoint, questions, new_events, appends, items)
        self._thread = threading.Thread(target=self._run, args=arguments, name="publish")
        self._thread.start()

    def give_up(self, problem: str) -> None:
        """Record that no checkpoint could be committed for a version (rank 0); logged once."""
        self._trouble.failed(problem)

    def wait(self) -> None:
        """Wait until the version in progress is live, refused or given up; raises errors other than the storage's."""
        if self._thread is not None:
            self._thread.join()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """End the process that builds versions, even if it is building; a thread gets a short time to finish."""
        self._closed = True
        if self._process is not None:
            self._process.close()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)

    def _run(
        self,
        checkpoint: Checkpoint | None,
        questions: Questions,
        new_events: Callable[[], Sequence[pa.RecordBatch]],
        appends: Int64Array,
        items: int,
    ) -> None:
        everyones = appends
        try:
            share = _Share(appends)
            if checkpoint is not None:
                share = _Share(appends, checkpoint.storage.where, checkpoint.name, items)
            shares: list[_Share] = self._comm.gather_objects(share)
            everyones = np.concatenate([share.append_ms for share in shares])
            before = self._live_name()
            outcome = self._agreed(self._build(shares[0], questions, new_events))
            if outcome.problem:
                outcome = self._unless_live(outcome, before, checkpoint)
        except (
            Exception
        ) as error:  # the thread must not die silently: `wait` and the worker loop raise the error
            lost = self._comm.broken or self._comm.explains(error)
            outcome = Outcome(problem=str(error)) if lost else Outcome(error=error)
        self._settle(outcome, appends, everyones)

    def _build(
        self, first: _Share, questions: Questions, new_events: Callable[[], Sequence[pa.RecordBatch]]
    ) -> Outcome:
        attempt = Attempt(self._config, first.location, first.checkpoint, questions)
        if first.items <= self._config.train.publish_in_thread_items:
            return make_version(self._comm, attempt, self._towers, self._check, new_events)
        try:
            process = self._builder()
            return process.build(attempt, self._check, new_events)
        except (BuilderLost, OSError) as error:
            return Outcome(problem=str(error), lost=True)

    def _builder(self) -> BuilderProcess:
        """Collective. The process of this rank; if any rank's is gone, all are started again.

        Raises:
            BuilderLost, OSError: one of them does not start, or does not find the others; on every rank.
        """
        if all(self._comm.gather_objects(self._process is not None and self._process.alive)):
            assert self._process is not None
            return self._process
        self._end_process()
        folder, problem = self._meeting() if self._comm.rank == 0 else (None, "")
        path, problem = self._comm.gather_objects((str(folder.path) if folder else "", problem))[0]
        if problem:
            raise OSError(problem)
        meeting, threads = Path(path) / "meeting", self._config.train.threads_per_worker
        try:
            self._process = BuilderProcess(self._comm.rank, self._comm.world, meeting, self._device, threads)
            self._process.wait_joined()
        except (BuilderLost, OSError) as error:
            problem = str(error)
        problems = [problem for problem in self._comm.gather_objects(problem) if problem]
        if folder is not None:
            folder.remove()
        if problems:
            raise BuilderLost(problems[0])
        assert self._process is not None
        return self._process

    def _meeting(self) -> tuple[OwnedFolder | None, str]:
        try:
            return self._meetings.make(), ""
        except OSError as error:
            return None, str(error)

    def _end_process(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def _agreed(self, mine: Outcome) -> Outcome:
        """Collective. The outcome of all ranks together."""
        own = mine.error is not None and not isinstance(mine.error, OtherRankError)
        told = self._comm.gather_objects((mine.problem, str(mine.error) if own else "", mine.lost))
        if any(lost for _, _, lost in told):
            self._end_process()
        errors = [f"rank {rank}: {error}" for rank, (_, error, _) in enumerate(told) if error]
        problems = [problem for problem, _, _ in told if problem]
        if errors:
            return mine if own else Outcome(error=RuntimeError(f"publishing failed on {errors[0]}"))
        return Outcome(problem=problems[0]) if problems else mine

    def _unless_live(self, outcome: Outcome, before: str, checkpoint: Checkpoint | None) -> Outcome:
        """Collective. The report of the version, if it went live before the problem, for example a lost builder.

        Args:
            outcome: with the problem.
            before: the version that was live before the attempt; of rank 0.
            checkpoint: of the attempt; of rank 0.
        """
        name = self._live_name()
        if checkpoint is None or name in ("", before) or not self._is_of(name, checkpoint):
            name = ""
        name = self._comm.gather_objects(name)[0]
        if not name:
            return outcome
        if self._comm.rank == 0:
            _log.warning("index version %s is live, although afterwards %s", name, outcome.problem)
        return Outcome(PublishReport.of(self.store.open(name)))

    def _live_name(self) -> str:
        """On rank 0; empty if there is none, or if the storage fails."""
        try:
            return (self.store.live_name() or "") if self._comm.rank == 0 else ""
        except OSError:
            return ""

    def _is_of(self, name: str, checkpoint: Checkpoint) -> bool:
        try:
            return bool(self.store.open(name).manifest.get("checkpoint") == checkpoint.location)
        except (OSError, VersionError):
            return False

    def _settle(self, outcome: Outcome, mine: Int64Array, everyones: Int64Array) -> None:
        if self._closed:
            return
        report = outcome.report
        if report is None or report.version is None:
            self._cover(mine)  # the next version has these events
        if outcome.error is not None:
            _log.error("publishing failed", exc_info=outcome.error)
            self.error = outcome.error
        elif report is None:
            if self._comm.rank == 0:
                self._trouble.failed(outcome.problem)
        else:
            self.last = report
            self._trouble.works()
            if report.version is not None:
                self.published += 1
                self.freshness.add(time.time() - everyones / 1000.0)

    def _cover(self, append_ms: Int64Array) -> None:
        with self._covering:
            self._covered.add(append_ms)
