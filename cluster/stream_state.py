"""What a run remembers of its stream beside positions: windows, watermarks, how the topic grew, what was skipped.

Part of the checkpoint: `admission-pPPPP.arrow` of each partition, written by its reader, and the manifest's `stream`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from cluster.checkpoint import Checkpoint, read_table
from streaming.admission import Admission

_FILE = "admission-p"


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
    """

    admission: Admission
    partitions: int
    epochs: list[Epoch] = field(default_factory=list)
    origin: dict[int, int] = field(default_factory=dict)
    skipped: dict[int, int] = field(default_factory=dict)

    def tables(self, partitions: Iterable[int]) -> dict[str, pa.Table]:
        """The files of these partitions, by name; whole in every checkpoint, also in a delta."""
        return {f"{_FILE}{p:05d}.arrow": self.admission.to_table(p) for p in partitions}

    def to_json(self) -> dict[str, Any]:
        """This rank's part of the manifest's `stream`; `merged` puts the parts together."""
        return {
            "partitions": self.partitions,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "origin": self.origin,
            "skipped": self.skipped,
        }

    def restore(self, checkpoint: Checkpoint, mine: Iterable[int]) -> None:
        """Go on from a checkpoint, for the partitions of this rank; one of an earlier version knows nothing."""
        saved = saved_stream(checkpoint.manifest)
        self.epochs = [Epoch(e["partitions"], _by_number(e["until"])) for e in saved["epochs"]]
        partitions = list(mine)
        self.origin = {p: at for p, at in _by_number(saved["origin"]).items() if p in partitions}
        self.skipped = {p: n for p, n in _by_number(saved["skipped"]).items() if p in partitions}
        files = {int(f.stem.removeprefix(_FILE)): f for f in checkpoint.files(_FILE)}
        moved = saved["partitions"] != self.partitions
        tables = [read_table(f) for f in files.values()] if moved else []
        for partition in partitions:
            if moved:
                self.admission.load_moved(partition, self.partitions, tables)
            elif partition in files:
                self.admission.load(partition, read_table(files[partition]))


def merged(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The manifest's `stream` from what every rank said; numbers of partitions as text, as JSON has them."""
    ranks = list(parts)
    whole = {**ranks[0], "origin": {}, "skipped": {}}
    for rank in ranks:
        for name in ("origin", "skipped"):
            whole[name] |= {str(p): value for p, value in rank[name].items()}
    whole["epochs"] = [
        {**epoch, "until": {str(p): at for p, at in epoch["until"].items()}} for epoch in whole["epochs"]
    ]
    return whole


def saved_stream(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's `stream`; of a checkpoint that has none, what follows from its positions."""
    nothing = {"partitions": len(manifest["positions"]), "epochs": [], "origin": {}, "skipped": {}}
    return nothing | dict(manifest.get("stream") or {})


def _by_number(values: Mapping[str, int]) -> dict[int, int]:
    return {int(p): int(value) for p, value in values.items()}
