"""Everything that one rank holds while it trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cluster.checkpoints.checkpoint import Checkpoint
from cluster.checkpoints.parts.generators import seed_dropout
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.device import compute_deterministically
from cluster.ledger import Ledger
from cluster.queries.towers import new_towers
from cluster.tables.row_optimizer import row_optimizer
from cluster.tables.sharded_embedding import ShardedEmbedding
from cluster.training.state.stream_state import Epoch, StreamState
from cluster.training.steps.progressive import Curve, ProgressiveValidation
from cluster.training.steps.train_step import TrainStep
from model.two_tower import TwoTower
from streaming.batches.admission import Admission
from streaming.batches.batcher import Batcher
from streaming.catalogue.catalogue import Catalogue
from streaming.dead_letters.writer import DeadLetterWriter
from streaming.events.position import EventSource, Gap, Position
from streaming.histories.history import UserStore
from streaming.histories.id_texts import KnownTexts


def partitions_of_rank(partitions: int, rank: int, world: int) -> list[int]:
    """The partitions that a rank reads; a user's events are all in one partition."""
    return list(range(rank, partitions, world))


@dataclass
class TrainingRun:
    """The state of one rank. `source` and `batcher` are opened once the positions are known."""

    config: FreshetConfig
    partitions: list[int]
    device: torch.device
    model: TwoTower
    table: ShardedEmbedding
    catalogue: Catalogue
    users: UserStore
    ledger: Ledger
    train_step: TrainStep
    progressive: ProgressiveValidation
    curve: Curve
    stream: StreamState
    step: int = 0
    events_trained: int = 0
    """Of all ranks, over all runs."""
    rows_read_before: int = 0
    """Rows read by earlier runs on all ranks; on rank 0 only, so that sums over ranks count them once."""
    dead_letters_before: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    """What was wrong with data that this rank has read in this attempt, by code."""
    positions: dict[int, Position] = field(default_factory=dict)
    catalogue_positions: Mapping[str, Mapping[int, Position]] = field(default_factory=dict)
    init_from: Mapping[str, Any] | None = None
    """Path and step of the checkpoint that the run was started from; None if from nothing."""
    notice: str = ""
    """A notice for people, in one line, such as dropped state of the checkpoint or a deletion without a match; empty if
    there is none."""
    reread_users: bool = False
    """Whether there are new user attributes whose values may be in records that were already read."""
    _opened: tuple[EventSource, Batcher, DeadLetterWriter] | None = None

    @staticmethod
    def create(
        config: FreshetConfig, partitions: list[int], comm: Collectives, device: torch.device
    ) -> TrainingRun:
        """Collective. A new run; towers are initialized from the seed, the same on every rank."""
        compute_deterministically(device)
        model = new_towers(config, device)
        seed_dropout(config.seed, comm.rank)
        table = ShardedEmbedding(
            config.model.dim,
            comm,
            row_optimizer(config.train.row_optimizer),
            seed=config.seed,
            device=device,
            init_std=config.model.init_std,
            limits=config.table,
        )
        catalogue = Catalogue(config.stream)
        everywhere = int(comm.exchange(np.array([len(partitions)], np.float64)).sum())
        return TrainingRun(
            config,
            partitions,
            device,
            model,
            table,
            catalogue,
            UserStore(config.stream.history_length, config.stream.seen_length, everywhere),
            Ledger(partitions),
            TrainStep(model, table, catalogue, comm, config, device),
            ProgressiveValidation(model, table, catalogue, comm, config),
            Curve(config.progressive.bin_events),
            StreamState(Admission(config.stream), everywhere),
        )

    def open(self, source: EventSource) -> None:
        """Attach the stream."""
        dead_letters = DeadLetterWriter(self.config.stream)
        batcher = Batcher(
            self.config.stream, source, self.users, self.catalogue, dead_letters, self.stream.admission
        )
        self._opened = (source, batcher, dead_letters)

    def note_origin(self) -> None:
        """Record where partitions that are read for the first time begin, which retention may have moved."""
        for partition, at in self.source.positions().items():
            if partition not in self.positions and at.offset > 0:
                self.stream.origin[partition] = at.offset

    def note_gaps(
        self,
        gaps: Mapping[int, Sequence[Gap]] | None = None,
        topic_ids: Mapping[int, str] | None = None,
    ) -> None:
        """Record gaps in the log before the positions; the exactly-once proof begins again after them.

        Args:
            gaps, topic_ids: the source's when a batch was taken; by default its current ones.
        """
        found = self.source.gaps if gaps is None else gaps
        for partition, until in self.stream.note_gaps(found).items():
            self.ledger.partitions[partition].begin_behind(until)
        self.stream.topic_ids |= self.source.topic_ids if topic_ids is None else topic_ids

    def close(self) -> None:
        """Close the stream."""
        self.source.close()
        self.dead_letters.close()

    def count_step(self, trained: pa.RecordBatch, events: int) -> None:
        """Record a step that was applied to these events of this rank, and to a total weight on all ranks."""
        self.ledger.add_batch(trained)
        self.events_trained += events
        self.step += 1

    def begin_at(self, starts: Mapping[int, int]) -> None:
        """Read each partition from this offset on, not from its beginning."""
        self.positions = {p: Position(start, 0) for p, start in starts.items()}
        self.stream.origin = dict(starts)

    def catalogue_read(
        self, positions: Mapping[str, Mapping[int, Position]], topic_ids: Mapping[str, str]
    ) -> None:
        """Record the positions up to which the catalogue's topics were applied (rank 0)."""
        self.catalogue_positions = positions
        self.stream.catalogue_ids = dict(topic_ids)

    def notify(self, notice: str) -> None:
        """Set the notice for people, in one line; empty for none."""
        self.notice = notice

    def need_users_again(self) -> None:
        """Record that new attributes have values in records that were already read."""
        self.reread_users = True

    def started_from(self, checkpoint: Checkpoint, rank: int) -> None:
        """Record that the learned state of this checkpoint of another run was taken over."""
        self.init_from = {"path": checkpoint.location, "step": checkpoint.step}
        self.seed_dropout(rank)

    def succeed(self, earlier: TrainingRun, until: Mapping[int, int]) -> None:
        """Continue the run from before the topic gained partitions.

        Args:
            earlier: the run whose checkpoint this one was restored from.
            until: the next offset of each of its partitions.
        """
        self.notice = earlier.notice
        self.stream.epochs.append(Epoch(earlier.stream.partitions, until))
        self.progressive.recent_queries = earlier.progressive.recent_queries

    def seed_dropout(self, rank: int) -> None:
        """Seed dropout by the step, so that no masks of earlier steps are drawn again."""
        seed_dropout(self.config.seed, rank, self.step)

    def count_on_from(self, step: int, events_seen: float) -> None:
        """Continue counting from a step."""
        self.step, self.train_step.events_seen = step, events_seen

    def restore_counts(
        self, events_trained: int, init_from: Mapping[str, Any] | None, *, rows_read: int, rows_dead: int
    ) -> None:
        """Restore the counts of earlier runs; rows are those of all ranks, on rank 0 only."""
        self.events_trained, self.init_from = events_trained, init_from
        self.rows_read_before, self.dead_letters_before = rows_read, rows_dead

    def restore_positions(
        self, positions: Mapping[int, Position], catalogue: Mapping[str, Mapping[int, Position]]
    ) -> None:
        """Restore the positions in the stream, and in the catalogue's topics (rank 0)."""
        self.positions, self.catalogue_positions = dict(positions), catalogue

    def next_positions(self) -> Mapping[int, Position]:
        """Where reading each partition continues."""
        return self.source.positions()

    @property
    def events_seen(self) -> float:
        """Summed weight of the events of all steps."""
        return self.train_step.events_seen

    @property
    def rows_read(self) -> int:
        """Rows that this rank has read; on rank 0, plus those of earlier runs."""
        return self.batcher.rows_read + self.rows_read_before

    @property
    def rows_dead(self) -> int:
        """Dead letters among them."""
        return self.batcher.rows_dead + self.dead_letters_before

    @property
    def texts(self) -> KnownTexts:
        """The texts of text ids."""
        return self.catalogue.texts

    @property
    def source(self) -> EventSource:
        """The open stream."""
        assert self._opened is not None, "open() comes first"
        return self._opened[0]

    @property
    def batcher(self) -> Batcher:
        """The batcher of the open stream."""
        assert self._opened is not None, "open() comes first"
        return self._opened[1]

    @property
    def dead_letters(self) -> DeadLetterWriter:
        """The dead-letter writer of the open stream."""
        assert self._opened is not None, "open() comes first"
        return self._opened[2]
