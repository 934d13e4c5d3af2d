"""Counts the topic itself and holds the trained state against it: was every event used exactly once?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.checkpoints.checkpoint import Checkpoint, CheckpointError, CheckpointStore, open_checkpoint
from cluster.checkpoints.ledger import PartitionLedger
from cluster.checkpoints.user_files import merged_ledger, partitions_in
from cluster.config import FreshetConfig
from cluster.training.stream_state import saved_stream
from streaming.backfill import topic_range
from streaming.config import StreamConfig
from streaming.parquet_source import ParquetSource
from streaming.position import Position
from streaming.schema import OFFSET, PARTITION, ROW, USER_ID
from streaming.source import KafkaSource, end_offsets

Int64Array = npt.NDArray[np.int64]

_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True)
class Accounting:
    """The count over the topic beside the count in the checkpoint.

    Attributes:
        events_in_topic: usable rows.
        events_trained: those that were trained on.
        events_negative: those that were explicit negatives.
        events_ignored: those that were neither, by `stream.positive_actions`.
        events_duplicate: those that had been there before, by their event id.
        events_quarantined: those whose training step was refused.
        events_lost: rows that were used less often than they are there.
        events_doubled: rows that were used more often.
        dead_letters_in_topic: unusable rows.
        dead_letters: rows that the checkpoint counts as such.
        rows_read: rows that the checkpoint's readers took, whatever became of them.
        users: of the topic and the checkpoint together.
        hash_equal: whether the positions of the used rows are those of the topic.
    """

    events_in_topic: int
    events_trained: int
    events_negative: int
    events_ignored: int
    events_duplicate: int
    events_quarantined: int
    events_lost: int
    events_doubled: int
    dead_letters_in_topic: int
    dead_letters: int
    rows_read: int
    users: int
    hash_equal: bool

    @property
    def adds_up(self) -> bool:
        """trained + negatives + ignored + duplicates + quarantined + dead-lettered = rows read."""
        used = self.events_trained + self.events_negative + self.events_ignored
        return used + self.events_duplicate + self.events_quarantined + self.dead_letters == self.rows_read

    @property
    def exactly_once(self) -> bool:
        """Every usable row used once, every other one counted as a dead letter, and what the reader took adds up."""
        balanced = self.dead_letters == self.dead_letters_in_topic and self.adds_up
        return self.events_lost == 0 and self.events_doubled == 0 and self.hash_equal and balanced


def verify_exactly_once(config: FreshetConfig, checkpoint_path: str | Path | None = None) -> Accounting:
    """Count the topic from its beginning to its present end and compare with a checkpoint's ledgers.

    Args:
        config: names the topic and the storage path.
        checkpoint_path: by default the newest checkpoint.
    Raises:
        CheckpointError: there is no checkpoint to compare with.
    """
    checkpoint = _open(config, checkpoint_path)
    used = {partition: merged_ledger(checkpoint, partition) for partition in partitions_in(checkpoint)}
    counted, dead = count_topic(config.stream, saved_stream(checkpoint.manifest))
    lost, doubled, users = _compare(counted, used)
    return Accounting(
        events_in_topic=sum(ledger.events for ledger in counted.values()),
        events_trained=sum(ledger.trained for ledger in used.values()),
        events_negative=sum(ledger.negatives for ledger in used.values()),
        events_ignored=sum(ledger.ignored for ledger in used.values()),
        events_duplicate=sum(ledger.duplicates for ledger in used.values()),
        events_quarantined=sum(ledger.quarantined for ledger in used.values()),
        events_lost=lost,
        events_doubled=doubled,
        dead_letters_in_topic=dead,
        dead_letters=int(checkpoint.manifest["dead_letters"]),
        rows_read=int(checkpoint.manifest["rows_read"]),
        users=users,
        hash_equal={p: c.hash_sum for p, c in counted.items()} == {p: t.hash_sum for p, t in used.items()},
    )


def count_topic(
    stream: StreamConfig, saved: Mapping[str, Any] | None = None
) -> tuple[dict[int, PartitionLedger], int]:
    """A ledger of every usable row of the interactions topic, by partition, and the number of unusable ones.

    Args:
        stream: the topic.
        saved: the manifest's `stream`: where a run began, and when the topic had how many partitions.
    """
    saved = saved or {"origin": {}, "epochs": []}
    if stream.parquet:
        return _count_files(stream)
    ends = end_offsets(stream, stream.interactions_topic)
    ledgers = {p: PartitionLedger(p) for p in ends}
    dead = 0
    start = {int(p): Position(at, 0) for p, at in saved["origin"].items()}
    for epoch in saved["epochs"]:
        until = {int(p): at for p, at in epoch["until"].items()}
        dead += _count_range(stream, start, until, epoch["partitions"], ledgers)
        start |= {p: Position(at, 0) for p, at in until.items()}
    if stream.until_time and stream.time_axis == "broker":
        ends = dict(topic_range(stream, bounded=True).end or {})
    dead += _count_range(stream, start, ends, len(ends), ledgers)
    return ledgers, dead


def _count_range(
    stream: StreamConfig,
    start: Mapping[int, Position],
    until: Mapping[int, int],
    spread_over: int,
    ledgers: dict[int, PartitionLedger],
) -> int:
    """Counts the usable rows; returns the number of the others."""
    dead = 0
    with KafkaSource(stream, sorted(until), start, until, spread_over=spread_over) as source:
        while not source.finished:
            source.wait(0.2)
            taken = source.take(dict.fromkeys(until, _ROWS_AT_ONCE))
            dead += len(taken.dead)
            _count(taken.rows, ledgers)
    return dead


def _count_files(stream: StreamConfig) -> tuple[dict[int, PartitionLedger], int]:
    ledgers = {p: PartitionLedger(p) for p in range(stream.parquet_partitions)}
    dead = 0
    source = ParquetSource(stream, ledgers, {})
    while source.wait(0.0):
        taken = source.take(dict.fromkeys(ledgers, _ROWS_AT_ONCE))
        dead += len(taken.dead)
        _count(taken.rows, ledgers)
    return ledgers, dead


def _count(rows: pa.RecordBatch, ledgers: dict[int, PartitionLedger]) -> None:
    partition_N = rows.column(PARTITION).to_numpy()
    user_N, offset_N = rows.column(USER_ID).to_numpy(), rows.column(OFFSET).to_numpy()
    row_N = rows.column(ROW).to_numpy().astype(np.int64)
    for partition in np.unique(partition_N).tolist():
        mine = partition_N == partition
        ledgers[partition].add(user_N[mine], offset_N[mine], row_N[mine])


def _compare(counted: dict[int, PartitionLedger], used: dict[int, PartitionLedger]) -> tuple[int, int, int]:
    lost = doubled = users = 0
    for partition in counted.keys() | used.keys():
        want = (counted.get(partition) or PartitionLedger(partition)).user_counts()
        have = (used.get(partition) or PartitionLedger(partition)).user_counts()
        everyone = np.union1d(want[0], have[0])
        missing = _spread(everyone, want) - _spread(everyone, have)
        lost += int(np.maximum(missing, 0).sum())
        doubled += int(np.maximum(-missing, 0).sum())
        users += everyone.shape[0]
    return lost, doubled, users


def _spread(everyone: Int64Array, counts: tuple[Int64Array, Int64Array]) -> Int64Array:
    out = np.zeros(everyone.shape[0], np.int64)
    out[np.searchsorted(everyone, counts[0])] = counts[1]
    return out


def _open(config: FreshetConfig, path: str | Path | None) -> Checkpoint:
    if path is not None:
        return open_checkpoint(path)
    store = CheckpointStore(config.checkpoint_location)
    newest = store.newest()
    if newest is None:
        raise CheckpointError(f"no checkpoint in {store.where} to compare with (setting: storage_path)")
    return newest
