"""What a run remembers of its stream beside positions: windows, watermarks, how the topic grew, what it could not read.

Part of the checkpoint: `admission-pPPPP.arrow` of each partition, written by its reader, and the manifest's `stream`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.checkpoints.arrays import read_table
from cluster.checkpoints.checkpoint import Checkpoint
from cluster.checkpoints.manifest import CheckpointError
from cluster.checkpoints.parts.users import merged_users, partitions_in
from streaming.batches.admission import Admission
from streaming.events.dead_letter import DeadLetter
from streaming.events.partitioner import Int32s, key_hashes_of_users
from streaming.events.position import Gap
from streaming.events.schema import KEY_HASH, USER_ID
from streaming.histories.history import UserStore

_FILE = "admission-p"
_BY_PARTITION = ("origin", "skipped", "behind", "dead", "dead_before", "topic_ids", "earlier_epochs")
"""What a rank knows of its own partitions; of all of them together in the manifest's `stream`."""


@dataclass(frozen=True)
class Epoch:
    """A time in which the topic had so many partitions: its end, by partition, as the next offset to read."""

    partitions: int
    until: Mapping[int, int]


@dataclass
class StreamState:
    """One rank's, for the partitions that it reads; the epochs are the same on every rank.

    Attributes:
        admission: watermarks and last event ids.
        partitions: how many partitions users are spread over at the positions of this state.
        epochs: earlier numbers of partitions, oldest first.
        origin: where the run began to read, by partition; what is not named was read from its beginning.
        skipped: messages that the log no longer held when they were to be read, by partition.
        behind: where reading went on behind the last of these, and the watermark there, by partition.
        dead: dead letters of each partition, since `behind` where there is such a place.
        dead_before: those before it.
        topic_ids: the topic that the position is of, by partition: a topic that is deleted and created anew has another
            id. Empty where the broker gives none, and in checkpoints of before these were written.
        earlier_epochs: how many of the epochs were of earlier topics of the same name, by partition.
        catalogue_ids: the topics that the positions in the catalogue are of, by name; on rank 0.
    """

    admission: Admission
    partitions: int
    epochs: list[Epoch] = field(default_factory=list)
    origin: dict[int, int] = field(default_factory=dict)
    skipped: dict[int, int] = field(default_factory=dict)
    behind: dict[int, tuple[int, int]] = field(default_factory=dict)
    dead: dict[int, int] = field(default_factory=dict)
    dead_before: dict[int, int] = field(default_factory=dict)
    topic_ids: dict[int, str] = field(default_factory=dict)
    earlier_epochs: dict[int, int] = field(default_factory=dict)
    catalogue_ids: dict[str, str] = field(default_factory=dict)
    _noted: dict[int, int] = field(default_factory=dict)
    """How many gaps of the open source are in `skipped` already, by partition."""

    def note_gaps(self, gaps: Mapping[int, Sequence[Gap]]) -> dict[int, int]:
        """What the open source has passed over so far; where it went on behind what is new of it, by partition."""
        new = {p: found[self._noted.get(p, 0) :] for p, found in gaps.items()}
        for partition, found in new.items():
            self._noted[partition] = len(gaps[partition])
            if found:
                self.skipped[partition] = self.skipped.get(partition, 0) + sum(gap.messages for gap in found)
                self.behind[partition] = (found[-1].until, found[-1].watermark_ms)
                before = self.dead_before.get(partition, 0) + self.dead.pop(partition, 0)
                self.dead_before[partition] = before
            if any(gap.is_anew for gap in found):
                self.earlier_epochs[partition] = len(self.epochs)
                self.admission.watermark_ms.pop(partition, None)
        return {p: found[-1].until for p, found in new.items() if found}

    def count_dead(self, letters: Iterable[DeadLetter]) -> None:
        """Dead letters of rows that were taken; of gaps before them `note_gaps` knows."""
        for letter in letters:
            is_before = letter.offset < self.behind.get(letter.partition, (0, 0))[0]
            counts = self.dead_before if is_before else self.dead
            counts[letter.partition] = counts.get(letter.partition, 0) + 1

    def tables(self, partitions: Iterable[int]) -> dict[str, pa.Table]:
        """The files of these partitions, by name; whole in every checkpoint, also in a delta."""
        return {f"{_FILE}{p:05d}.arrow": self.admission.to_table(p) for p in partitions}

    def to_json(self) -> dict[str, Any]:
        """This rank's part of the manifest's `stream`; `merged` puts the parts together."""
        return {
            "partitions": self.partitions,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "catalogue_ids": dict(self.catalogue_ids),
            **{name: dict(getattr(self, name)) for name in _BY_PARTITION},
        }

    def restore(self, checkpoint: Checkpoint, mine: Iterable[int]) -> None:
        """Go on from a checkpoint, for the partitions of this rank; one of an earlier version knows nothing."""
        saved = saved_stream(checkpoint.manifest)
        self.epochs = [Epoch(e["partitions"], _by_number(e["until"])) for e in saved["epochs"]]
        partitions = list(mine)
        for name in _BY_PARTITION:
            setattr(self, name, {p: value for p, value in _by_number(saved[name]).items() if p in partitions})
        self.catalogue_ids = dict(saved["catalogue_ids"])
        self.behind = {p: (at, watermark_ms) for p, (at, watermark_ms) in self.behind.items()}
        files = {int(f.stem.removeprefix(_FILE)): f for f in checkpoint.files(_FILE)}
        moved = saved["partitions"] != self.partitions
        tables = [read_table(f) for f in files.values()] if moved else []
        for partition in partitions:
            if moved:
                self.admission.load_moved(partition, self.partitions, tables)
            elif partition in files:
                self.admission.load(partition, read_table(files[partition]))


def load_moved_users(checkpoint: Checkpoint, users: UserStore, mine: Iterable[int], partitions: int) -> None:
    """Fill a store with the users of some partitions from a checkpoint of when the topic had fewer.

    Raises:
        CheckpointError: it is of a version that did not write key hashes, and has users whose ids were texts.
    """
    wanted = list(mine)
    for partition in partitions_in(checkpoint):
        table = merged_users(checkpoint, partition)
        if KEY_HASH not in table.column_names:
            table = table.append_column(KEY_HASH, pa.array(_key_hashes(checkpoint, table, partition)))
        home_N = table[KEY_HASH].to_numpy() % partitions
        users.load(table.filter(pa.array(np.isin(home_N, wanted))))


def _key_hashes(checkpoint: Checkpoint, table: pa.Table, partition: int) -> Int32s:
    key_N = key_hashes_of_users(table[USER_ID].to_numpy())
    if (key_N % saved_stream(checkpoint.manifest)["partitions"] != partition).any():
        raise CheckpointError(
            f"{checkpoint.location} does not say where users with text ids belong in a topic that has gained "
            "partitions: go on with the version before until it has written a checkpoint,"
            " or start in an empty storage_path"
        )
    return key_N


def merged(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The manifest's `stream` from what every rank said; numbers of partitions as text, as JSON has them."""
    ranks = list(parts)
    whole = {**ranks[0], **{name: {} for name in _BY_PARTITION}}
    for rank in ranks:
        for name in _BY_PARTITION:
            whole[name] |= {str(p): value for p, value in rank[name].items()}
    whole["epochs"] = [
        {**epoch, "until": {str(p): at for p, at in epoch["until"].items()}} for epoch in whole["epochs"]
    ]
    return whole


def saved_stream(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's `stream`; of a checkpoint that has none, what follows from its positions."""
    nothing = {"partitions": len(manifest["positions"]), "epochs": [], "catalogue_ids": {}}
    nothing |= {name: {} for name in _BY_PARTITION}
    return nothing | dict(manifest.get("stream") or {})


def _by_number(values: Mapping[str, Any]) -> dict[int, Any]:
    return {int(p): value for p, value in values.items()}
