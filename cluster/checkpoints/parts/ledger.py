"""The ledger of the rows used of each partition, as Arrow files; the sums are metadata.

| file | holds |
|---|---|
| `ledger-pPPPPP.arrow` | the counts of every user of the partition |
| `ledger-pPPPPP.changes.arrow` | those that have changed |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.checkpoints.arrays import read_table
from cluster.checkpoints.checkpoint import Checkpoint
from cluster.checkpoints.part import Part, Saved
from cluster.checkpoints.parts.users import last_of_each, partitions_in
from cluster.ledger import Ledger, PartitionLedger

LEDGER = "ledger-p"
_USERS_AT_ONCE = 1 << 16


class LedgerPart(Part):
    """The ledgers of one rank."""

    names = (LEDGER,)

    def __init__(self, ledger: Ledger, partitions: Sequence[int]) -> None:
        self._ledger, self._partitions = ledger, list(partitions)
        self._sums: dict[int, dict[str, str]] = {}

    def forget(self) -> None:
        """See Part."""
        for partition in self._partitions:
            self._take(partition)

    def base(self) -> Iterator[tuple[str, pa.Table]]:
        """See Part."""
        for partition in self._partitions:
            ledger = self._ledger.partitions[partition]
            users = ledger.counts.shape[0]
            for start in range(0, max(1, users), _USERS_AT_ONCE):
                some = np.arange(start, min(start + _USERS_AT_ONCE, users))
                yield f"{LEDGER}{partition:05d}.arrow", ledger.to_table(some)

    def changes(self) -> dict[str, pa.Table]:
        """See Part."""
        return {
            f"{LEDGER}{p:05d}.changes.arrow": self._ledger.partitions[p].to_table(self._take(p))
            for p in self._partitions
        }

    def restore(self, saved: Saved) -> None:
        """See Part; a new partition has no ledger yet."""
        for partition in set(self._partitions) & set(partitions_in(saved.checkpoint)):
            self._ledger.partitions[partition] = merged_ledger(saved.checkpoint, partition)

    def _take(self, partition: int) -> npt.NDArray[np.int64]:
        """Places of users whose counts have changed; one user if only the sums have, which are saved with users."""
        ledger = self._ledger.partitions[partition]
        places = ledger.take_changed()
        if places.shape[0] == 0 and ledger.sums != self._sums.get(partition):
            places = np.arange(min(1, ledger.counts.shape[0]))
        self._sums[partition] = ledger.sums
        return places


def merged_ledger(checkpoint: Checkpoint, partition: int) -> PartitionLedger:
    """The ledger of a partition."""
    tables = [read_table(f) for f in reversed(checkpoint.files(f"{LEDGER}{partition:05d}"))]
    metadata = tables[0].schema.metadata
    return PartitionLedger.from_table(last_of_each(tables).replace_schema_metadata(metadata))
