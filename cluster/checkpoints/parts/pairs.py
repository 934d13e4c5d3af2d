"""The counts of the co-occurrence baseline in a checkpoint: one row per pair of items that occurred together.

| file | holds |
|---|---|
| `cooccurrence.arrow` | all pairs, in slices that were copied one after the other |
| `cooccurrence.changes.arrow` | pairs that are new or were counted again since the previous file |

A pair is two columns of the item list in `baselines.safetensors`. Earlier versions kept all pairs in that file in every
checkpoint: `cooccurrence.row`, `.column` and `.count`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import torch

from cluster.checkpoints.arrays import read_table, read_tensors
from cluster.checkpoints.checkpoint import Checkpoint
from cluster.checkpoints.part import Part, Saved
from cluster.checkpoints.parts.baselines import FILE as BASELINES
from model.baselines.pair_table import Pairs, PairTable
from streaming.arrays import Int64Array

_STEM = "cooccurrence"
_ROW, _COLUMN, _COUNT = "row", "column", "count"
_PAIRS_AT_ONCE = 1 << 16


_NO_PAIRS = Pairs(*(np.zeros(0, np.int32),) * 3)


class PairPart(Part):
    """The counts. All ranks count the same, so one writes.

    Args:
        counts: this rank's.
        writes: whether this rank writes them.
        parent: the checkpoint that the next delta builds on; if its pairs are in an earlier version's file, the delta
            has all pairs.
        stopped: whether counting has stopped, as `BaselinePart` restores it; then there is nothing to restore.
    """

    names = (_STEM,)

    def __init__(
        self,
        counts: PairTable,
        *,
        writes: bool,
        parent: Checkpoint | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._counts, self._writes, self._stopped = counts, writes, stopped
        self._parent_has_them = parent is None or bool(parent.files(_STEM))

    def forget(self) -> None:
        """See Part."""
        self._counts.take_changes()

    def base(self) -> Iterator[tuple[str, pa.Table]]:
        """See Part."""
        self._parent_has_them = True
        if not self._writes:
            return
        yield (
            f"{_STEM}.arrow",
            _table(_NO_PAIRS),
        )  # an empty file shows that counts are kept here
        for some in self._counts.slices(_PAIRS_AT_ONCE):
            yield f"{_STEM}.arrow", _table(some)

    def changes(self) -> dict[str, pa.Table]:
        """See Part."""
        changed = self._counts.take_changes()
        if not self._parent_has_them:
            changed, self._parent_has_them = self._counts.pairs(), True
        return {f"{_STEM}.changes.arrow": _table(changed)} if self._writes else {}

    def restore(self, saved: Saved) -> None:
        """See Part."""
        if not self._stopped():
            load_pairs(saved.checkpoint, self._counts)


def load_pairs(checkpoint: Checkpoint, counts: PairTable) -> None:
    """Restore the counts of a checkpoint and its chain, of any version."""
    files = checkpoint.files(_STEM)
    for file in files:
        counts.put(_pairs(read_table(file)))
    if not files:
        counts.put(_earlier(checkpoint))


def merged_pairs(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The distinct pairs, int64, sorted by row and column, named as in earlier versions: equal for equal counts."""
    parts = [_pairs(read_table(file)) for file in checkpoint.files(_STEM)] or [_earlier(checkpoint)]
    if int(read_tensors(checkpoint.file(BASELINES))[f"{_STEM}.items"]) < 0:
        parts = [_NO_PAIRS]  # counting has stopped, even if earlier files of the chain have pairs
    low_P, high_P, count_P = (
        np.concatenate([getattr(part, name) for part in parts]).astype(np.int64)
        for name in ("low_P", "high_P", "count_P")
    )
    # If several files have a pair, the last one wins.
    last = low_P.shape[0] - 1 - np.unique((low_P << 32 | high_P)[::-1], return_index=True)[1]
    columns: dict[str, Int64Array] = {_ROW: low_P[last], _COLUMN: high_P[last], _COUNT: count_P[last]}
    return {f"{_STEM}.{name}": torch.from_numpy(column) for name, column in columns.items()}


def _table(pairs: Pairs) -> pa.Table:
    return pa.table({_ROW: pairs.low_P, _COLUMN: pairs.high_P, _COUNT: pairs.count_P})


def _pairs(table: pa.Table) -> Pairs:
    return Pairs(*(table[name].to_numpy() for name in (_ROW, _COLUMN, _COUNT)))


def _earlier(checkpoint: Checkpoint) -> Pairs:
    """The pairs in an earlier version's file; none in a current one."""
    tensors = read_tensors(checkpoint.file(BASELINES))
    none = torch.zeros(0, dtype=torch.int64)
    columns = (tensors.get(f"{_STEM}.{name}", none).numpy() for name in (_ROW, _COLUMN, _COUNT))
    return Pairs(*(column.astype(np.int32) for column in columns))
