"""One delta of a version, and the files in it that a search needs.

    items-RRRR.arrow    item vectors that are new or replace older ones: ids int64, vectors float32
    deleted-RRRR.arrow  ids of deleted items
RRRR is the rank that wrote them. Other files are their writers' own, listed and checksummed like these.

Shape letters: N items, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrieval.arrays import Float32Array, Int64Array
from retrieval.indexes.ivf import IndexInputError
from retrieval.indexes.parts import Part, write_part
from retrieval.storage.committed import CommittedSet
from retrieval.storage.durable import PRIVATE_FILE, naming

_NO_IDS = np.empty(0, np.int64)
_DELETED = pa.schema({"item_id": pa.int64()})


class DeltaError(RuntimeError):
    """A delta is damaged or missing, or cannot be committed; names it and what is wrong."""


class DeltasDropped(DeltaError):
    """The deltas that a reader has applied, or a writer has committed, are not part of the version any more."""


@dataclass(frozen=True)
class Delta(CommittedSet):
    """A committed delta; copies of its files are kept while this object exists."""

    def damaged(self, what: str) -> DeltaError:
        """See CommittedSet."""
        return DeltaError(f"delta {self.name} of index version {self.manifest['version']} is damaged: {what}")

    @property
    def number(self) -> int:
        """Its place in the chain, from 1."""
        return int(self.manifest["number"])

    @property
    def previous(self) -> str:
        """Checksum of its predecessor's manifest, or of the version's for the first."""
        return str(self.manifest.get("previous", ""))

    def items(self) -> tuple[Int64Array, Float32Array]:
        """Ids int64 (N,) and vectors float32 (N, D) of all ranks; D is 0 if there are no vectors.

        Raises:
            DeltaError: a file of vectors cannot be read, or they differ in width.
        """
        try:
            slices = [one for name in self.files("items-") for one in Part(self.file(name)).slices()]
        except (IndexInputError, pa.ArrowInvalid) as error:
            raise self.damaged(str(error)) from error
        widths = sorted({vectors.shape[1] for _, vectors in slices})
        if len(widths) > 1:
            raise self.damaged(f"its vectors have widths {widths}")
        if not slices:
            return _NO_IDS, np.empty((0, 0), np.float32)
        return np.concatenate([ids for ids, _ in slices]), np.concatenate([vectors for _, vectors in slices])

    def deleted(self) -> Int64Array:
        """Ids of deleted items, int64, of all ranks.

        Raises:
            DeltaError: a file of ids cannot be read.
        """
        return np.concatenate([_NO_IDS, *(self._deleted_in(name) for name in self.files("deleted-"))])

    def _deleted_in(self, name: str) -> Int64Array:
        try:
            with pa.OSFile(str(self.file(name))) as source:
                table = pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid as error:
            raise self.damaged(f"{name}: {error}") from error
        if table.schema != _DELETED:
            raise self.damaged(f"{name} does not hold item_id: int64")
        return np.asarray(table["item_id"].to_numpy(), np.int64)


def write_items(
    folder: Path, rank: int, item_ids: Int64Array, vectors_ND: Float32Array, deleted: Int64Array
) -> None:
    """Write a rank's part of a delta: ids int64 (N,) with vectors float32 (N, D), and ids of deleted items.

    Raises:
        IndexInputError: another number of ids than vectors.
        OSError: the files cannot be written.
    """
    if item_ids.shape[0]:
        write_part(folder / f"items-{rank:04d}.arrow", item_ids, vectors_ND)
    if deleted.shape[0]:
        path = folder / f"deleted-{rank:04d}.arrow"
        path.touch(PRIVATE_FILE)
        with (
            naming(path),
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_file(sink, _DELETED) as writer,
        ):
            writer.write_table(pa.table({"item_id": pa.array(deleted, pa.int64())}, schema=_DELETED))
