"""From steps to deltas of the live version, beside training.

    snapshot between two steps   on every rank, once the last turn has ended everywhere (`start`)
    a thread of each rank        a turn of `writer.py`; its outcome is applied by the next `start`

Every snapshot of a checkpoint is a moment (`checkpoint_taken`). A version is of one of them, so its first delta has
what has changed since then. Storage that fails costs the delta, not its changes: they are in the next one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch

from cluster.checkpoints.manifest import CheckpointError
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.deltas.adopting import Restored
from cluster.deltas.pace import Pace
from cluster.deltas.snapshot import Moment, RunChanges, Snapshot
from cluster.deltas.writer import Covered, DeltaWriter, Plan, Turn
from cluster.observability.delta_figures import DeltaFigures
from cluster.observability.freshness import UnpublishedAppends
from cluster.storage_trouble import StorageTrouble
from cluster.tables.sharded_embedding import ShardedEmbedding
from retrieval.deltas.delta import DeltaError
from retrieval.ranks import OtherRankError
from retrieval.versions.store import VersionError
from streaming.catalogue.catalogue import Catalogue
from streaming.catalogue.records import CatalogueUpdate

_PATIENCE = timedelta(minutes=10)
_CLOSE_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ended:
    """How a turn ended; one of them is set, the same on every rank."""

    turn: Turn | None = None
    problem: str = ""
    error: BaseException | None = None


class DeltaPublisher:
    """Publishes the deltas of one rank's run, with the other ranks.

    Args:
        comm: the ranks. Collective.
        config: settings.
        device: that encodes.
        check: called on rank 0 before a delta is committed; raises if it must not be.
        figures: gets what becomes of them.
    """

    def __init__(
        self,
        comm: Collectives,
        config: FreshetConfig,
        device: torch.device,
        check: Callable[[], None] = lambda: None,
        figures: DeltaFigures | None = None,
    ) -> None:
        self.unpublished = UnpublishedAppends()
        """Append times of the events trained since the last snapshot."""
        self.error: BaseException | None = None
        """An error that is not the storage's."""
        self._figures = figures or DeltaFigures()
        self._refresh = ""
        self.limit = ""
        """The limit that the deltas of the live version have passed, in words; empty if none (rank 0)."""
        on = config.index.delta_every_s > 0 and config.train.publish_every_s > 0
        self._every_s = config.index.delta_every_s if on else 0.0
        self._pace = Pace(self._every_s, config.index.delta_cpu_share)
        self._comm = comm.beside(_PATIENCE) if on else comm
        self._writer = DeltaWriter(self._comm, config, device, check)
        self._trouble = StorageTrouble("deltas cannot be written")
        self._changes: RunChanges | None = None
        self._moments: dict[int, Moment] = {}
        self._taken = 0
        self._of_checkpoint: dict[str, int] = {}
        self._of_version = 0
        self._snapshots = False
        self._restored: Restored | None = None
        self._thread: threading.Thread | None = None
        self._ended: Ended | None = None
        self._covered = Covered(0, 0, self.unpublished.drain())
        self._began_s, self._wait_s = time.monotonic(), self._every_s
        self._published = self._looked = 0

    @property
    def on(self) -> bool:
        """Whether there are deltas at all (`index.delta_every_s`, `train.publish_every_s`)."""
        return self._every_s > 0

    @property
    def ready(self) -> bool:
        """Whether this rank's last turn has ended."""
        return self.on and not (self._thread is not None and self._thread.is_alive())

    def attach(self, table: ShardedEmbedding, catalogue: Catalogue, restored: Restored | None = None) -> None:
        """Follow the state of a run from here on.

        Args:
            table: of this rank.
            catalogue: of the run.
            restored: the checkpoint of which they have the state; without one, a version of an earlier state gets no
                more deltas.
        """
        if not self.on:
            return
        self.wait()
        self._ended = None
        self._writer.forget()
        self._changes = RunChanges(table, catalogue, self._comm.rank, self._comm.world)
        self._moments, self._of_checkpoint, self._of_version = {}, {}, 0
        self._snapshots, self._restored = False, restored
        if restored is not None:
            self.checkpoint_taken()
            self.checkpoint_committed(restored.location)

    def records_applied(self, update: CatalogueUpdate) -> None:
        """Note records that the catalogue has applied, between steps."""
        if self._changes is not None:
            self._changes.records_applied(update)

    def checkpoint_taken(self) -> None:
        """Note the snapshot of a checkpoint; every rank calls it at the same step."""
        if self._changes is not None:
            self._taken += 1
            self._moments[self._taken] = self._changes.moment()

    def checkpoint_committed(self, location: str) -> None:
        """Note the newest committed checkpoint, before another one begins (rank 0); repeating it changes nothing."""
        self._of_checkpoint.setdefault(location, self._taken)

    def version_begun(self, location: str) -> None:
        """Note that a version of a checkpoint is being built; its moment is kept (rank 0)."""
        self._of_version = self._of_checkpoint.get(location, 0)

    @property
    def interval_s(self) -> float:
        """Seconds between the starts of two deltas at present (`index.delta_every_s`, `index.delta_cpu_share`)."""
        return self._pace.interval_s

    def due(self, now: float, published: int = 0) -> bool:
        """Whether it is time for the next delta (rank 0).

        Args:
            now: monotonic seconds.
            published: number of versions that this process has published. A new one is looked at without delay.
        """
        self._published = published
        waited = now - self._began_s >= self._wait_s or published != self._looked
        return waited and self.ready and self._changes is not None

    def start(self, step: int, events_trained: int) -> None:
        """Collective, once every rank is `ready`: copy what has changed, and make a delta of it beside training."""
        self._began_s, self._wait_s, self._looked = time.monotonic(), self._every_s, self._published
        self._settle()
        changes = self._changes
        assert changes is not None
        began_s = time.thread_time()
        snapshot = changes.take() if self._snapshots else None
        copied_s = time.thread_time() - began_s
        covered = Covered(step, events_trained, self.unpublished.drain())
        self._covered = covered
        arguments = (snapshot, covered, copied_s)
        self._thread = threading.Thread(target=self._run, args=arguments, name="delta", daemon=True)
        self._thread.start()

    def take_refresh(self) -> str:
        """Why a full refresh is needed, once; empty if it is not."""
        reason, self._refresh = self._refresh, ""
        return reason

    def wait(self) -> None:
        """Wait until the turn in progress has ended."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Give the turn in progress a short time to end; what is not committed is garbage."""
        if self._thread is not None:
            self._thread.join(_CLOSE_S)

    def _run(self, snapshot: Snapshot | None, covered: Covered, copied_s: float) -> None:
        try:
            mine = self._turn(snapshot, covered)
            if mine.turn is not None and mine.turn.committed is not None:
                self._pace.cost(copied_s + time.thread_time())  # the thread is of this delta only
            told = self._comm.gather_objects((mine.problem, str(mine.error or "")))
        except Exception as error:  # the connection of the ranks; the run ends for the same reason
            self.end_of_turn(Ended(problem=str(error)))
            return
        errors = [f"rank {rank}: {error}" for rank, (_, error) in enumerate(told) if error]
        problems = [problem for problem, _ in told if problem]
        if errors:
            self.end_of_turn(
                mine if mine.error else Ended(error=RuntimeError(f"a delta failed on {errors[0]}"))
            )
        else:
            self.end_of_turn(Ended(problem=problems[0]) if problems else mine)

    def _turn(self, snapshot: Snapshot | None, covered: Covered) -> Ended:
        try:
            return Ended(self._writer.turn(snapshot, covered, self._plan))
        except (OSError, VersionError, DeltaError, CheckpointError, OtherRankError) as error:
            return Ended(problem=str(error))
        except Exception as error:
            if self._comm.broken or self._comm.explains(error):
                raise
            _log.error("a delta failed", exc_info=error)
            return Ended(error=error)

    def _plan(self) -> Plan:
        """What only rank 0 knows."""
        known = dict(self._moments)
        of_checkpoint = {where: at for where, at in dict(self._of_checkpoint).items() if at in known}
        newest = max(of_checkpoint.values(), default=0)
        return Plan(of_checkpoint, min(newest, self._of_version or newest), self._restored)

    def end_of_turn(self, ended: Ended) -> None:
        """Tell the outcome, in the turn's thread; the rest is done between steps."""
        turn = ended.turn
        if ended.error is not None:
            self.error = ended.error
        elif turn is None:
            if self._comm.rank == 0:
                self._trouble.failed(ended.problem)
                self._figures.problem = self._trouble.problem
        elif self._comm.rank == 0:
            self._trouble.works()
            self._refresh = turn.refresh or self._refresh
            self._figures.problem = "" if turn.version else turn.refresh or self._figures.problem
            self._wait_s = self._wait_after(turn)
            if not turn.empty:
                self.limit = turn.committed.limit if turn.committed is not None else ""
            if turn.committed is not None:
                ages_s = time.time() - turn.committed.append_ms / 1000.0
                self._figures.committed(turn.version, turn.committed.number, turn.committed.share, ages_s)
        self._ended = ended

    def _wait_after(self, turn: Turn) -> float:
        """Seconds from the start of a turn to the next; only what was committed has a cost to wait for."""
        if turn.begin_at is not None:
            return 0.0  # the new version lacks what the deltas of the last one had
        return self.interval_s if turn.committed is not None else self._every_s

    def _settle(self) -> None:
        """Collective, between steps: apply the outcome of the last turn, and forget moments that no version is of."""
        ended, self._ended = self._ended, None
        if ended is None or self._changes is None:
            return
        turn = ended.turn
        done = turn is not None and (turn.committed is not None or turn.empty)
        self._changes.settle(committed=done)
        if not done:
            self.unpublished.add(self._covered.append_ms)
        if turn is None:
            return
        if turn.begin_at is not None:
            self._changes.begin_at(self._moments[turn.begin_at])
            adopted = self._writer.take_adopted()
            if adopted is not None:
                self._changes.touch(adopted.tables, adopted.ids)
        self._snapshots = bool(turn.version)
        self._forget_before(turn.keep_from)

    def _forget_before(self, number: int) -> None:
        """Drop what came before a moment, which no version can be of any more."""
        assert self._changes is not None
        for old in [known for known in self._moments if known < number]:
            del self._moments[old]
        self._of_checkpoint = {where: at for where, at in self._of_checkpoint.items() if at >= number}
        if number in self._moments:
            if not self._snapshots:
                self._changes.begin_at(self._moments[number])
            self._changes.forget_before(self._moments[number])
