"""What a step trains on: taken from the stream when it begins, or one batch ahead while a GPU computes the step before.

A batch that was taken ahead is in the histories and behind the positions already, but nothing else knows of it: gaps,
dead letters and what is set aside are noted when its step begins, as without it. The worker trains it before it does
anything but a step, so no checkpoint and no version ever sees a batch in hand. It is taken ahead on every rank or on
none, and only where waiting could not make it larger: the batches are those of a run that takes none ahead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from cluster.training.state.run import TrainingRun
from cluster.training.steps.train_step import TrainStep
from streaming.events.dead_letter import DeadLetter
from streaming.events.position import Gap


@dataclass(frozen=True)
class _Taken:
    """A batch, and what was beside it."""

    batch: pa.RecordBatch
    rows: int
    dead: Sequence[DeadLetter]
    set_aside: pa.RecordBatch
    gaps: Mapping[int, Sequence[Gap]]
    """As of when it was taken: rows of another log may be noted before it, never under it."""
    topic_ids: Mapping[int, str]


class BatchTaker:
    """Takes the batches of one rank.

    Args:
        run: has its stream open.
        quota: most rows of each partition.
    """

    def __init__(self, run: TrainingRun, quota: int) -> None:
        self._run, self.quota = run, quota
        self._in_hand: _Taken | None = None
        self._failure: Exception | None = None

    @property
    def in_hand(self) -> bool:
        """Whether a batch has been taken ahead, or could not be."""
        return self._in_hand is not None or self._failure is not None

    @property
    def rows_in_hand(self) -> int:
        """Rows of the stream that were taken ahead."""
        return self._in_hand.rows if self._in_hand is not None else 0

    def next(self) -> pa.RecordBatch:
        """The batch of the step that begins."""
        run = self._run
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        taken, self._in_hand = self._in_hand, None
        if taken is None:
            run.note_gaps()  # a topic that was recreated: what is taken from here on is of it
            taken = self._take()
        run.note_gaps(taken.gaps, taken.topic_ids)
        run.stream.count_dead(taken.dead)
        run.ledger.add_set_aside(taken.set_aside)
        return taken.batch

    def take_ahead(self, train_step: TrainStep) -> None:
        """Take the next step's batch and read from it what needs no other rank; an error is raised by `next`."""
        if self.in_hand:
            return
        try:
            self._in_hand = self._take()
            train_step.read_ahead(self._in_hand.batch)
        except Exception as error:
            self._failure = error

    def _take(self) -> _Taken:
        run, before = self._run, self._run.batcher.rows_read
        batch = run.batcher.next_batch(self.quota)
        rows = run.batcher.rows_read - before
        source = run.source
        return _Taken(batch, rows, run.batcher.dead, run.batcher.set_aside, source.gaps, source.topic_ids)
