"""A run's state about its stream besides positions: id windows, watermarks, growth of the topic, skipped messages.

`cluster/checkpoints/parts/stream.py` saves and restores it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.checkpoints.parts.stream import BY_PARTITION
from streaming.batches.admission import Admission
from streaming.events.dead_letter import DeadLetter
from streaming.events.position import Gap


@dataclass(frozen=True)
class Epoch:
    """A period with one number of the topic's partitions, and its end by partition, as the next offset to read."""

    partitions: int
    until: Mapping[int, int]


@dataclass
class StreamState:
    """The state of one rank for the partitions that it reads; epochs are the same on every rank.

    Attributes:
        admission: watermarks and last event ids.
        partitions: number of partitions over which users are spread at the positions of this state.
        epochs: earlier numbers of partitions, oldest first.
        origin: where the run began to read, by partition; others were read from their beginning.
        skipped: messages that were no longer in the log when they were to be read, by partition.
        behind: where reading continued after the last of these, and the watermark there, by partition.
        dead: dead letters of each partition, since `behind` if set.
        dead_before: dead letters before `behind`.
        topic_ids: id of the topic that the position refers to, by partition; a recreated topic has another id. Empty if
            the broker has no ids, and in older checkpoints.
        earlier_epochs: number of epochs that were of earlier topics of the same name, by partition.
        catalogue_ids: ids of the topics that the positions in the catalogue refer to, by name; on rank 0.
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
    """Number of the open source's gaps that are already in `skipped`, by partition."""

    def note_gaps(self, gaps: Mapping[int, Sequence[Gap]]) -> dict[int, int]:
        """Record the open source's gaps; returns where reading continued after new ones, by partition."""
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
        """Count dead letters of rows that were taken, after `note_gaps` for gaps before them."""
        for letter in letters:
            is_before = letter.offset < self.behind.get(letter.partition, (0, 0))[0]
            counts = self.dead_before if is_before else self.dead
            counts[letter.partition] = counts.get(letter.partition, 0) + 1

    def to_json(self) -> dict[str, Any]:
        """This rank's part of the manifest's `stream`; `merged_stream` puts the parts together."""
        return {
            "partitions": self.partitions,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "catalogue_ids": dict(self.catalogue_ids),
            **{name: dict(getattr(self, name)) for name in BY_PARTITION},
        }

    def load_json(self, saved: Mapping[str, Any], mine: Iterable[int]) -> None:
        """Restore from the manifest's `stream`, for the partitions of this rank."""
        self.epochs = [Epoch(e["partitions"], _by_number(e["until"])) for e in saved["epochs"]]
        partitions = set(mine)
        for name in BY_PARTITION:
            setattr(self, name, {p: value for p, value in _by_number(saved[name]).items() if p in partitions})
        self.catalogue_ids = dict(saved["catalogue_ids"])
        self.behind = {p: (at, watermark_ms) for p, (at, watermark_ms) in self.behind.items()}


def _by_number(values: Mapping[str, Any]) -> dict[int, Any]:
    return {int(p): value for p, value in values.items()}
