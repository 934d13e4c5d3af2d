"""The state of a run's stream: `admission-pPPPPP.arrow` of each partition, and the manifest's `stream`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from cluster.checkpoints.arrays import read_table
from cluster.checkpoints.part import Copies, Part, Saved
from streaming.batches.admission import Admission

BY_PARTITION = ("origin", "skipped", "behind", "dead", "dead_before", "topic_ids", "earlier_epochs")
"""A rank's fields about its own partitions; the manifest's `stream` has those of all ranks."""
_FILE = "admission-p"


class StreamMemory(Protocol):
    """The part of `StreamState` that is saved and restored."""

    admission: Admission
    partitions: int

    def to_json(self) -> dict[str, Any]:
        """This rank's part of the manifest's `stream`."""

    def load_json(self, saved: Mapping[str, Any], mine: Iterable[int]) -> None:
        """The inverse, for the partitions of this rank; partition numbers are text in it."""


class StreamPart(Part):
    """Windows, watermarks, epochs, gaps and counts of one rank's partitions; complete in every checkpoint."""

    names = (_FILE,)

    def __init__(self, stream: StreamMemory, partitions: Sequence[int]) -> None:
        self._stream, self._partitions = stream, partitions

    def copies(self) -> Copies:
        """See Part."""
        admission = self._stream.admission
        tables = {f"{_FILE}{p:05d}.arrow": admission.to_table(p) for p in self._partitions}
        return Copies(tables, told={"stream": self._stream.to_json()})

    def merged(self, told: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """See Part."""
        return {"stream": merged_stream(rank["stream"] for rank in told)}

    def restore(self, saved: Saved) -> None:
        """See Part; checkpoints of earlier versions do not have it."""
        stream, said = self._stream, saved_stream(saved.manifest)
        stream.load_json(said, self._partitions)
        files = {int(f.stem.removeprefix(_FILE)): f for f in saved.files(_FILE)}
        moved = said["partitions"] != stream.partitions
        tables = [read_table(f) for f in files.values()] if moved else []
        for partition in self._partitions:
            if moved:
                stream.admission.load_moved(partition, stream.partitions, tables)
            elif partition in files:
                stream.admission.load(partition, read_table(files[partition]))


def merged_stream(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The manifest's `stream` from all ranks' data; partition numbers are text, as JSON requires."""
    ranks = list(parts)
    whole = {**ranks[0], **{name: {} for name in BY_PARTITION}}
    for rank in ranks:
        for name in BY_PARTITION:
            whole[name] |= {str(p): value for p, value in rank[name].items()}
    whole["epochs"] = [
        {**epoch, "until": {str(p): at for p, at in epoch["until"].items()}} for epoch in whole["epochs"]
    ]
    return whole


def saved_stream(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's `stream`; for a checkpoint without it, what its positions imply."""
    nothing = {"partitions": len(manifest["positions"]), "epochs": [], "catalogue_ids": {}}
    nothing |= {name: {} for name in BY_PARTITION}
    return nothing | dict(manifest.get("stream") or {})
