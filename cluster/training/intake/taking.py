"""Takes the batch of a step from the stream, at its beginning or ahead, while a GPU computes the previous step.

A batch taken ahead is already in the histories and before the positions, but nowhere else: its gaps, dead letters and
rows set aside are recorded when its step begins. The worker trains it before doing anything else, so no checkpoint or
version is made while a batch is held. Batches are taken ahead on all ranks or none, and only if waiting could not make
them larger, so they are the same as without this.
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
    """A batch, with the other rows that were read for it."""

    batch: pa.RecordBatch
    rows: int
    dead: Sequence[DeadLetter]
    implausible: int
    """Usable rows whose time is before 1971."""
    set_aside: pa.RecordBatch
    gaps: Mapping[int, Sequence[Gap]]
    """Topic ids when it was taken: rows of another log may be recorded before it, but not as its own."""
    topic_ids: Mapping[int, str]


class BatchTaker:
    """Takes the batches of one rank.

    Args:
        run: has its stream open.
        quota: maximum number of rows per partition.
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
        """The batch of the current step."""
        run = self._run
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        taken, self._in_hand = self._in_hand, None
        if taken is None:
            run.note_gaps()  # if the topic was recreated, rows taken from here on are of the new one
            taken = self._take()
        run.note_gaps(taken.gaps, taken.topic_ids)
        run.stream.count_dead(taken.dead)
        run.faults.update(letter.code for letter in taken.dead)
        if taken.implausible:
            run.faults.update({"implausible_time": taken.implausible})
            run.notify(_implausible(run))
        run.ledger.add_set_aside(taken.set_aside)
        return taken.batch

    def take_ahead(self, train_step: TrainStep) -> None:
        """Take the next step's batch and prepare what needs no other rank; `next` raises an error of this."""
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
        return _Taken(
            batch,
            rows,
            run.batcher.dead,
            run.batcher.implausible,
            run.batcher.set_aside,
            source.gaps,
            source.topic_ids,
        )


def _implausible(run: TrainingRun) -> str:
    count, unit = run.faults["implausible_time"], run.config.stream.timestamp_unit
    return f"{count:,} events are of before 1971: their times may be in another unit than stream.timestamp_unit={unit}"
