"""Counts the topic independently and compares the result with a checkpoint: was every event used exactly once?

Every message of the topic was read, or was removed by retention before it could be (`messages_skipped`). For a
partition with such a gap, only the messages after it are counted. Messages that retention removed after they were used
cannot be counted (`messages_removed`); in their partition, lost rows are detected, but not doubled ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.checkpoints.checkpoint import Checkpoint, CheckpointStore, open_checkpoint
from cluster.checkpoints.manifest import CheckpointError
from cluster.checkpoints.parts.id_texts import USERS as USER_TEXTS
from cluster.checkpoints.parts.id_texts import read_texts
from cluster.checkpoints.parts.ledger import merged_ledger
from cluster.checkpoints.parts.stream import saved_stream
from cluster.checkpoints.parts.users import partitions_in
from cluster.config import FreshetConfig
from cluster.ledger import PartitionLedger
from streaming.arrays import Int64Array
from streaming.config import StreamConfig
from streaming.events.dead_letter import DeadLetter
from streaming.events.position import Position
from streaming.events.schema import OFFSET, PARTITION, ROW, USER_ID
from streaming.events.validation import Decoded
from streaming.histories.id_texts import IdTexts
from streaming.kafka.consumer import current_topic_id
from streaming.sources.backfill import topic_range
from streaming.sources.kafka_source import KafkaSource, end_offsets, first_offsets
from streaming.sources.parquet_source import ParquetSource

_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True)
class Accounting:
    """The counts of the topic beside those of the checkpoint.

    Attributes:
        events_in_topic: usable rows; in a partition with a gap, those after it.
        events_waiting: usable rows after the checkpoint's positions, if `up_to_positions` was given; they are in no
            other number.
        events_trained: events that were trained on.
        events_negative: explicit negatives.
        events_ignored: events that were neither, by `stream.positive_actions`.
        events_duplicate: events whose event id had occurred before.
        events_quarantined: events whose training step was refused.
        events_lost: rows that were used less often than they occur.
        events_doubled: rows that were used more often than they occur.
        dead_letters_in_topic: unusable rows; in a partition with a gap, those after it.
        dead_letters: unusable rows by the checkpoint's count.
        dead_letters_before_gaps: those of them before a gap.
        messages_skipped: messages that were no longer in the log when they were to be read.
        messages_removed: messages that were read and are no longer in the log; also those of a deleted topic, if a new
            one has its name and has not been read yet.
        rows_read: rows taken by the checkpoint's readers, for any use.
        users: of topic and checkpoint together.
        hash_equal: whether the positions of the used rows equal those of the topic, where nothing was removed.
    """

    events_in_topic: int
    events_waiting: int
    events_trained: int
    events_negative: int
    events_ignored: int
    events_duplicate: int
    events_quarantined: int
    events_lost: int
    events_doubled: int
    dead_letters_in_topic: int
    dead_letters: int
    dead_letters_before_gaps: int
    messages_skipped: int
    messages_removed: int
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
        """Whether every usable row was used once, every other row is a dead letter, and the rows read add up.

        For messages that retention removed before they were read, only their number is known. If it removed messages
        afterwards, exactly-once can no longer be proved, and this is false.
        """
        dead = self.dead_letters - self.dead_letters_before_gaps
        balanced = dead == self.dead_letters_in_topic and self.adds_up and self.messages_removed == 0
        return self.events_lost == 0 and self.events_doubled == 0 and self.hash_equal and balanced


def verify_exactly_once(
    config: FreshetConfig, checkpoint_path: str | Path | None = None, *, up_to_positions: bool = False
) -> Accounting:
    """Count the topic from its beginning to its present end and compare with a checkpoint's ledgers.

    Args:
        config: names the topic and the storage path.
        checkpoint_path: by default the newest checkpoint.
        up_to_positions: count only rows before the checkpoint's positions; if a run continues, later rows are not lost.
    Raises:
        CheckpointError: there is no checkpoint to compare with.
    """
    checkpoint = _open(config, checkpoint_path)
    used = {partition: merged_ledger(checkpoint, partition) for partition in partitions_in(checkpoint)}
    saved = saved_stream(checkpoint.manifest)
    positions = _positions_of(checkpoint)
    gone = _of_earlier_topics(config.stream, saved, positions)
    if gone:
        saved = _behind_all(saved, gone)
        positions |= dict.fromkeys(gone, Position(0, 0))
        current = {p: PartitionLedger(p) if p in gone else ledger for p, ledger in used.items()}
    else:
        current = used
    topic = _TopicCount(positions if up_to_positions else None)
    _count_topic(config.stream, saved, topic)
    counted = topic.ledgers
    removed = _removed(config.stream, saved) | gone
    lost, doubled, users = _compare(counted, current, removed)
    return Accounting(
        events_in_topic=sum(ledger.events for ledger in counted.values()),
        events_waiting=topic.waiting,
        events_trained=sum(ledger.trained for ledger in used.values()),
        events_negative=sum(ledger.negatives for ledger in used.values()),
        events_ignored=sum(ledger.ignored for ledger in used.values()),
        events_duplicate=sum(ledger.duplicates for ledger in used.values()),
        events_quarantined=sum(ledger.quarantined for ledger in used.values()),
        events_lost=lost,
        events_doubled=doubled,
        dead_letters_in_topic=topic.dead,
        dead_letters=int(checkpoint.manifest["dead_letters"]),
        dead_letters_before_gaps=sum(saved["dead_before"].values()),
        messages_skipped=sum(saved["skipped"].values()),
        messages_removed=sum(removed.values()),
        rows_read=int(checkpoint.manifest["rows_read"]),
        users=users,
        hash_equal=_hashes(counted, removed) == _hashes(current, removed),
    )


def _of_earlier_topics(
    stream: StreamConfig, saved: Mapping[str, Any], positions: Mapping[int, Position]
) -> dict[int, int]:
    """Number of used messages of deleted topics, for each partition whose position is of a deleted topic."""
    known = {int(p): topic for p, topic in saved["topic_ids"].items()}
    now = current_topic_id(stream, stream.interactions_topic) if known and not stream.parquet else ""
    start = _first_to_count(saved)
    gone = [p for p, topic in known.items() if now and topic != now and p in positions]
    return {p: positions[p].offset - start.get(p, 0) for p in gone if any(positions[p])}


def _behind_all(saved: Mapping[str, Any], partitions: Iterable[int]) -> dict[str, Any]:
    """The manifest's `stream` as if these partitions started here."""
    names = [str(p) for p in partitions]
    dead_before = {p: saved["dead"].get(p, 0) + saved["dead_before"].get(p, 0) for p in names}
    return {
        **saved,
        "behind": {**saved["behind"], **dict.fromkeys(names, (0, 0))},
        "dead_before": {**saved["dead_before"], **dead_before},
        "earlier_epochs": {**saved["earlier_epochs"], **dict.fromkeys(names, len(saved["epochs"]))},
    }


def used_per_user(config: FreshetConfig, checkpoint_path: str | Path | None = None) -> pa.Table:
    """The number of each user's events of any kind that a checkpoint has used since the last gap of their partition.

    Returns:
        `user_id` int64 in ascending order, or texts if any user's id is one, and `events` int64; users without any
        are left out.
    Raises:
        CheckpointError: there is no checkpoint.
    """
    checkpoint = _open(config, checkpoint_path)
    counts = [merged_ledger(checkpoint, p).user_counts() for p in partitions_in(checkpoint)]
    users_R = np.concatenate([np.zeros(0, np.int64), *(users for users, _ in counts)])
    events_R = np.concatenate([np.zeros(0, np.int64), *(events for _, events in counts)])
    # If the topic has gained partitions, a user may be in two of them.
    users_U, at_R = np.unique(users_R, return_inverse=True)
    events_U = np.zeros(users_U.shape[0], np.int64)
    np.add.at(events_U, at_R, events_R)
    some = events_U > 0
    texts = read_texts(checkpoint.files(USER_TEXTS), IdTexts())
    given = [str(user) for user in texts.as_given(users_U[some])] if len(texts) else users_U[some]
    return pa.table({USER_ID: given, "events": events_U[some]})


@dataclass
class _TopicCount:
    """The topic's content, up to positions if they are given: a ledger of the usable rows, by partition.

    Attributes:
        positions: the next row of each partition; None counts all.
        ledgers: of the usable rows before them.
        dead: unusable rows before them.
        waiting: usable rows after them.
    """

    positions: Mapping[int, Position] | None = None
    ledgers: dict[int, PartitionLedger] = field(default_factory=dict)
    dead: int = 0
    waiting: int = 0

    def add(self, taken: Decoded) -> None:
        """Count rows that were read."""
        self.dead += sum(self._is_before(letter) for letter in taken.dead)
        partition_N = taken.rows.column(PARTITION).to_numpy()
        offset_N = taken.rows.column(OFFSET).to_numpy()
        row_N = taken.rows.column(ROW).to_numpy().astype(np.int64)
        user_N = taken.rows.column(USER_ID).to_numpy()
        for partition in np.unique(partition_N).tolist():
            mine = partition_N == partition
            if self.positions is not None:
                offset, row = self.positions.get(partition, Position(0, 0))
                before = (offset_N < offset) | ((offset_N == offset) & (row_N < row))
                self.waiting += int(np.count_nonzero(mine & ~before))
                mine &= before
            self.ledgers[partition].add(user_N[mine], offset_N[mine], row_N[mine])

    def _is_before(self, letter: DeadLetter) -> bool:
        if self.positions is None:
            return True
        return (letter.offset, letter.row) < tuple(self.positions.get(letter.partition, Position(0, 0)))


def _count_topic(stream: StreamConfig, saved: Mapping[str, Any], count: _TopicCount) -> None:
    """Count every row of the interactions topic.

    Args:
        stream: the topic.
        saved: the manifest's `stream`: where a run began, where it continued after gaps, and the topic's numbers of
            partitions over time.
        count: is updated.
    """
    if stream.parquet:
        _count_files(stream, count)
        return
    ends = end_offsets(stream, stream.interactions_topic)
    count.ledgers = {p: PartitionLedger(p) for p in ends}
    first = first_offsets(stream, stream.interactions_topic)
    start = {p: Position(max(at, first[p]), 0) for p, at in _first_to_count(saved).items() if p in first}
    behind = {int(p): at for p, (at, _) in saved["behind"].items()}
    watermark_ms = {int(p): watermark for p, (_, watermark) in saved["behind"].items()}
    earlier = {int(p): epochs for p, epochs in saved["earlier_epochs"].items()}
    for number, epoch in enumerate(saved["epochs"]):
        until = {int(p): at for p, at in epoch["until"].items() if number >= earlier.get(int(p), 0)}
        # A partition that continued after the end of this epoch has nothing to count in it.
        inside = {p: at for p, at in until.items() if at > behind.get(p, -1)}
        _count_range(stream, start, inside, epoch["partitions"], count, watermark_ms)
        start |= {p: Position(max(at, first[p]), 0) for p, at in inside.items()}
        watermark_ms = {p: w for p, w in watermark_ms.items() if p not in inside}
    if stream.until_time and stream.time_axis == "broker":
        ends = dict(topic_range(stream, bounded=True).end or {})
    _count_range(stream, start, ends, len(ends), count, watermark_ms)


def _first_to_count(saved: Mapping[str, Any]) -> dict[int, int]:
    """The beginning of the used rows of each partition, if recorded: after the last gap, or at the origin."""
    origin = {int(p): at for p, at in saved["origin"].items()}
    return origin | {int(p): at for p, (at, _) in saved["behind"].items()}


def _removed(stream: StreamConfig, saved: Mapping[str, Any]) -> dict[int, int]:
    """Number of messages that should be counted but are no longer in the log, for partitions with any."""
    if stream.parquet:
        return {}
    start = _first_to_count(saved)
    first = first_offsets(stream, stream.interactions_topic)
    return {p: at - start.get(p, 0) for p, at in first.items() if at > start.get(p, 0)}


def _count_range(
    stream: StreamConfig,
    start: Mapping[int, Position],
    until: Mapping[int, int],
    spread_over: int,
    count: _TopicCount,
    watermark_ms: Mapping[int, int],
) -> None:
    with KafkaSource(
        stream, sorted(until), start, until, spread_over=spread_over, watermark_ms=watermark_ms
    ) as source:
        while not source.finished:
            source.wait(0.2)
            count.add(source.take(dict.fromkeys(until, _ROWS_AT_ONCE)))


def _count_files(stream: StreamConfig, count: _TopicCount) -> None:
    count.ledgers = {p: PartitionLedger(p) for p in range(stream.parquet_partitions)}
    source = ParquetSource(stream, count.ledgers, {})
    while source.wait(0.0):
        count.add(source.take(dict.fromkeys(count.ledgers, _ROWS_AT_ONCE)))


def _hashes(ledgers: Mapping[int, PartitionLedger], removed: Mapping[int, int]) -> dict[int, int]:
    return {p: ledger.hash_sum for p, ledger in ledgers.items() if p not in removed}


def _compare(
    counted: Mapping[int, PartitionLedger], used: Mapping[int, PartitionLedger], removed: Mapping[int, int]
) -> tuple[int, int, int]:
    lost = doubled = users = 0
    for partition in counted.keys() | used.keys():
        want = (counted.get(partition) or PartitionLedger(partition)).user_counts()
        have = (used.get(partition) or PartitionLedger(partition)).user_counts()
        everyone = np.union1d(want[0], have[0])
        missing = _spread(everyone, want) - _spread(everyone, have)
        lost += int(np.maximum(missing, 0).sum())
        if partition not in removed:
            doubled += int(np.maximum(-missing, 0).sum())
        users += everyone.shape[0]
    return lost, doubled, users


def _spread(everyone: Int64Array, counts: tuple[Int64Array, Int64Array]) -> Int64Array:
    out = np.zeros(everyone.shape[0], np.int64)
    out[np.searchsorted(everyone, counts[0])] = counts[1]
    return out


def _positions_of(checkpoint: Checkpoint) -> dict[int, Position]:
    return {int(p): Position(*at) for p, at in checkpoint.manifest["positions"].items()}


def _open(config: FreshetConfig, path: str | Path | None) -> Checkpoint:
    if path is not None:
        return open_checkpoint(path)
    store = CheckpointStore(config.checkpoint_location)
    newest = store.newest()
    if newest is None:
        raise CheckpointError(f"no checkpoint in {store.where} to compare with (setting: storage_path)")
    return newest
