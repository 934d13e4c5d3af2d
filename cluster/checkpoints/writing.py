"""One rank's part in writing a checkpoint: copied between steps, written by a thread, committed at a later step.

    idle ──begin──► slices ──advance──► writing ──advance──► idle      a full one, or a delta of much
                   ▲      │ advance: much has changed meanwhile
                   └──────┘
    idle ──begin──────────────────────► writing ──advance──► idle      a delta of little

For a full checkpoint, the growing parts are passed in slices, for a few milliseconds between steps, to a thread that
writes them. Rows are copied by the thread itself while they are trained on. When the last slice of every rank is
written, everything that has changed since the first one is copied at once, as for a delta, and written beside it, which
also corrects rows that the thread read half changed. The checkpoint is the state at that step. So training never waits
for a copy of everything, which would cost as much as writing it.

If much has changed, these changes are copied in slices first, and again while there is much left, so that the last copy
takes a few milliseconds too.

If storage fails (a full disk, an unreachable object store), only the checkpoint is lost, not the run: all ranks give it
up, a warning is logged, and the next one is full. Only the last checkpoint of a run must succeed.
"""

from __future__ import annotations

import itertools
import logging
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cluster.checkpoints.checkpoint import Checkpoint, CheckpointStore, Writing
from cluster.checkpoints.manifest import CheckpointError
from cluster.checkpoints.part import Copy, Part, Slice
from cluster.collectives import Collectives
from retrieval.storage.base import Hook, nothing
from retrieval.storage.durable import FileEntry

_SLICES_AHEAD = 8
_ELSEWHERE = "on another rank"
_AT_ONCE_BYTES = 8 << 20
_MOST_ROUNDS = 5
_log = logging.getLogger(__name__)


@dataclass
class FullPolicy:
    """Decides when the next checkpoint is a full one.

    Attributes:
        every: maximum number of deltas in a chain.
        share: of the full one's bytes; a chain also ends once its deltas together exceed this.
    """

    every: int = 20
    share: float = 0.5

    def wants_full(self, parent: Checkpoint | None) -> bool:
        """Whether the next checkpoint should not build on this one."""
        if parent is None:
            return True
        full, *deltas = parent.links
        return len(deltas) >= self.every or sum(d.size for d in deltas) > self.share * full.size


@dataclass
class _OnItsWay:
    """The checkpoint that is being written."""

    writing: Writing
    parent: Checkpoint | None
    entries: list[FileEntry] = field(default_factory=list)
    rounds: int = 0
    """How often changes have been copied in slices."""
    told: Mapping[str, Any] | None = None
    """This rank's data for the manifest; empty before the snapshot."""
    job: Future[list[FileEntry]] | None = None


class Checkpointer:
    """Writes the checkpoints of one run, one at a time. All ranks make calls marked collective at the same step.

    Args:
        store: where they are stored.
        comm: the ranks.
        parts: this rank's state, equal to the parent's.
        parent: the checkpoint that this run resumed from; None makes the first checkpoint a full one.
        policy: when to write a full one.
        at: fault hook, by the numbered steps of `checkpoint.py`.
        at_snapshot: called at the instant that a checkpoint is of.
    """

    def __init__(
        self,
        store: CheckpointStore,
        comm: Collectives,
        parts: Sequence[Part],
        *,
        parent: Checkpoint | None = None,
        policy: FullPolicy | None = None,
        at: Hook = nothing,
        at_snapshot: Callable[[], None] = lambda: None,
    ) -> None:
        self.stalls_s: list[float] = []
        """How long each checkpoint has delayed training so far, on this rank."""
        self._store, self._comm, self._parts = store, comm, parts
        self._parent, self._policy, self._at = parent, policy or FullPolicy(), at
        self._at_snapshot = at_snapshot
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._now: _OnItsWay | None = None
        self._failed = False
        self.problem = ""
        """Why the last attempt to write a checkpoint failed; empty if it succeeded."""
        self._slices: Iterator[tuple[str, Slice]] | None = None
        self._queue: queue.Queue[tuple[str, Slice] | None] = queue.Queue(_SLICES_AHEAD)
        for part in parts:
            part.forget()

    @property
    def idle(self) -> bool:
        """Whether a checkpoint can begin; the same on every rank."""
        return self._now is None

    @property
    def ready(self) -> bool:
        """Whether this rank's thread has finished its work, successfully or not."""
        job = self._now.job if self._now is not None else None
        return job is not None and job.done()

    def begin(self, step: int) -> None:
        """Collective. Start a checkpoint: a delta of this step, or a full one of the step at which its base is done."""
        started = time.perf_counter()
        self._failed = False
        plan = self._agree_on_plan(step)
        if plan is None:
            self._give_up()
            return
        writing, full, much = plan
        self._now = _OnItsWay(writing, None if full else self._parent)
        self.stalls_s.append(0.0)
        if full:
            for part in self._parts:
                part.forget()
            self._copy_in_slices(piece for part in self._parts for piece in part.base())
        elif much:
            self._copy_changes_in_slices()
        self.stalls_s[-1] += time.perf_counter() - started
        if full or much:
            self.copy_some()
        else:
            self._take_snapshot()

    def copy_some(self, budget_s: float = 0.005) -> None:
        """Pass slices of the base to the thread until time is up, the thread falls behind, or there are no more."""
        if self._slices is None:
            return
        started = time.perf_counter()
        # Nothing else fills the queue: if it is not full now, the slice fits.
        while not self._queue.full() and not self.ready and time.perf_counter() - started < budget_s:
            piece = next(self._slices, None)
            self._queue.put_nowait(piece)
            if piece is None:
                self._slices = None
                break
        self.stalls_s[-1] += time.perf_counter() - started

    def advance(self) -> Checkpoint | None:
        """Collective, once every rank is `ready`: snapshot after the base, or commit. Rank 0 gets the checkpoint."""
        assert self._now is not None, "no checkpoint is in progress"
        assert self._now.job is not None
        started = time.perf_counter()
        error = self._now.job.exception()
        if error is not None and not isinstance(error, OSError):
            raise error
        more = self._now.told is None and self._now.rounds < _MOST_ROUNDS and self._much_has_changed
        failed, much = self._comm.exchange(np.array([error is not None, more], np.float64)).sum(axis=0)
        if failed:
            self._give_up(error)
            return None
        self._now.entries += self._now.job.result()
        if much:
            self._copy_changes_in_slices()
            self.stalls_s[-1] += time.perf_counter() - started
            return None
        if self._now.told is None:
            self.stalls_s[-1] += time.perf_counter() - started
            self._take_snapshot()
            return None
        committed = self._commit()
        self.stalls_s[-1] += time.perf_counter() - started
        return committed

    def finish(self, step: int) -> Checkpoint | None:
        """Collective. Finish the one in progress and commit one of this very step; rank 0 gets the checkpoint.

        Raises:
            CheckpointError: the storage failed.
        """
        self._complete()
        self.begin(step)
        committed = self._complete()
        problems = self._comm.gather_objects(self.problem if self._failed else "")
        if any(problems):
            # First the error of the rank whose storage failed, then those of ranks that only learned of it.
            problem = min(filter(None, problems), key=lambda text: text.endswith(_ELSEWHERE))
            raise CheckpointError(
                f"the last checkpoint could not be written ({problem}): no data is lost, the next run resumes from the "
                "one before it; make room, wait longer (train.storage_patience_s), or set another location "
                "(storage_path or train.checkpoint_path)"
            )
        return committed

    def close(self) -> None:
        """Let the thread end; uncommitted files are garbage."""
        self._slices = None
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            self._queue.get_nowait()
            self._queue.put_nowait(None)
        self._thread.shutdown(wait=True)

    def _complete(self) -> Checkpoint | None:
        committed = None
        while self._now is not None:
            while self._slices is not None and not self.ready:
                self.copy_some(1.0)
                time.sleep(0.001)
            assert self._now.job is not None
            self._now.job.exception()
            committed = self.advance()
        return committed

    @property
    def _much_has_changed(self) -> bool:
        """Whether changes take longer to copy than training should wait."""
        return sum(part.changed_bytes() for part in self._parts) > _AT_ONCE_BYTES

    def _copy_changes_in_slices(self) -> None:
        assert self._now is not None
        self._now.rounds += 1
        number = self._now.rounds
        self._copy_in_slices(piece for part in self._parts for piece in part.changes_in_slices(number))

    def _copy_in_slices(self, slices: Iterator[tuple[str, Slice]]) -> None:
        assert self._now is not None
        self._slices, self._queue = slices, queue.Queue(_SLICES_AHEAD)
        self._now.job = self._thread.submit(self._write_slices, self._now.writing, self._queue)

    def _agree_on_plan(self, step: int) -> tuple[Writing, bool, bool] | None:
        """Where to, whether it is a full one, and whether a delta is of much."""
        plan: tuple[str, bool] | None = None
        if self._comm.rank == 0:
            try:
                plan = self._store.begin(step).name, self._wants_full()
            except OSError as error:
                self.problem = f"no checkpoint can begin in {self._store.where}: {error}"
                _log.error("%s", self.problem)
        told = self._comm.gather_objects((plan, self._much_has_changed))
        agreed: tuple[str, bool] | None = told[0][0]
        if agreed is None:
            return None
        return Writing(self._store.storage, agreed[0]), agreed[1], any(much for _, much in told)

    def _wants_full(self) -> bool:
        """Whether the policy requires it, or the checkpoint that a delta would build on is gone."""
        if self._policy.wants_full(self._parent):
            return True
        assert self._parent is not None
        gone = {link.name for link in self._parent.links}.difference(self._store.names())
        if gone:
            _log.warning(
                "%s is missing from %s, so the next checkpoint is a full one",
                ", ".join(sorted(gone)),
                self._store.where,
            )
        return bool(gone)

    def _take_snapshot(self) -> None:
        """Copy changes and small state, between two steps, and pass them to the thread."""
        assert self._now is not None
        started = time.perf_counter()
        self._at("snapshot")
        self._at_snapshot()
        tables: dict[str, Copy] = {
            file: table for part in self._parts for file, table in part.changes().items() if table.num_rows
        }
        tensors: dict[str, Mapping[str, torch.Tensor]] = {}
        told: dict[str, Any] = {}
        for copies in [part.copies() for part in self._parts]:
            tables |= copies.tables
            tensors |= copies.tensors
            told |= copies.told
        self._now.told = told
        self._now.job = self._thread.submit(self._write, self._now.writing, tables, tensors)
        self.stalls_s[-1] += time.perf_counter() - started

    def _commit(self) -> Checkpoint | None:
        now, self._now = self._now, None
        assert now is not None
        assert now.told is not None
        self._at("written")
        told = self._comm.gather_objects({"files": now.entries, **now.told})
        committed = None
        if self._comm.rank == 0:
            files = [entry for rank in told for entry in rank.pop("files")]
            try:
                committed = self._store.commit(now.writing, files, self._describe(told), now.parent)
            except OSError as error:
                self.problem = f"{self._store.where}/{now.writing.name} was not committed: {error}"
                _log.error("%s; the next is full", self.problem)
                self._failed = True
            else:
                self.problem = ""
                self._thread.submit(self._prune, committed)
        self._parent = committed
        return committed

    def _describe(self, told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The manifest's state; fields that all ranks know are taken from rank 0."""
        described = dict(told[0])
        for part in self._parts:
            described |= part.merged(told)
        return described

    def _prune(self, committed: Checkpoint) -> None:
        try:
            self._store.prune(committed)
        except OSError as error:
            _log.warning("an old checkpoint in %s was not removed: %s", self._store.where, error)

    def _give_up(self, error: BaseException | None = None) -> None:
        now, self._now, self._slices, self._parent = self._now, None, None, None
        self._failed = True
        if error is not None:
            self.problem = f"a checkpoint could not be written to {self._store.where}: {error}"
            _log.error("%s; the next is full", self.problem)
        elif not self.problem:
            self.problem = f"a checkpoint could not be written to {self._store.where} {_ELSEWHERE}"
        if now is not None:
            self._comm.gather_objects(None)  # nothing writes to it any more
            if self._comm.rank == 0:
                now.writing.storage.discard(now.writing.name)

    def _write_slices(
        self, writing: Writing, pieces: queue.Queue[tuple[str, Slice] | None]
    ) -> list[FileEntry]:
        entries = []
        for file, slices in itertools.groupby(iter(pieces.get, None), key=lambda piece: piece[0]):
            self._at("write")
            tables = (piece() if callable(piece) else piece for _, piece in slices)
            entries.append(writing.write_table(file, tables))
        return entries

    def _write(
        self,
        writing: Writing,
        tables: Mapping[str, Copy],
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
    ) -> list[FileEntry]:
        entries = []
        for file, table in tables.items():
            self._at("write")
            entries.append(writing.write_table(file, table() if callable(table) else table))
        for file, values in tensors.items():
            self._at("write")
            entries.append(writing.write_tensors(file, values))
        return entries
