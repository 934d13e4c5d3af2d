"""Records of items or users in a checkpoint's chain, read in slices from its mapped files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.checkpoints.arrays import map_table
from cluster.checkpoints.part import FileHere
from cluster.checkpoints.parts.catalogue import without_deleted
from retrieval.storage.durable import PRIVATE_FILE, naming
from streaming.arrays import Int64Array
from streaming.catalogue.records import last_records
from streaming.histories.id_index import IdIndex


class SavedRecords:
    """The last record of each id, in order of the ids' first records. Memory follows the records of later files.

    Args:
        files: from the last one that holds everything (`files_of`).
        key: the name of the ids' column.
        with_deleted: whether deleted items or users are included.
    """

    def __init__(self, files: Sequence[FileHere], key: str, *, with_deleted: bool) -> None:
        self._files, self._key, self._with_deleted = files, key, with_deleted
        self._all, *later = (map_table(file.path) for file in files)
        self._later = last_records(pa.concat_tables([self._all.slice(0, 0), *later]), key)
        self._index = IdIndex()
        self._index.add(self._later[key].to_numpy())
        self._new = self._later.slice(0, 0) if not later else self._of_new_ids()

    def slices(self, at_once: int) -> Iterator[pa.Table]:
        """All records, in slices of at most `at_once`."""
        for start in range(0, self._all.num_rows, at_once):
            yield self._as_now(self._all.slice(start, at_once))
        for start in range(0, self._new.num_rows, at_once):
            yield self._new.slice(start, at_once)

    def of(self, ids: Int64Array) -> pa.Table:
        """The records of some ids; unknown ones have none."""
        wanted = pa.array(ids)
        old, new = (t.filter(pc.is_in(t[self._key], value_set=wanted)) for t in (self._all, self._new))
        return pa.concat_tables([self._as_now(old), new])

    def write(self, path: Path, at_once: int = 1 << 14) -> None:
        """Write all records as one file."""
        with naming(path):
            if not self._later.num_rows:
                shutil.copyfile(self._files[0].path, path)
                return
            path.touch(PRIVATE_FILE)
            schema = self._all.schema
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for some in self.slices(at_once):
                    writer.write_table(some)

    def _as_now(self, some: pa.Table) -> pa.Table:
        """These records of the whole file, or later ones in their place."""
        if not self._later.num_rows:
            return some
        at = self._index.find(some[self._key].to_numpy())
        if (at < 0).all():
            return some
        place = np.where(at < 0, np.arange(some.num_rows), some.num_rows + at.astype(np.int64))
        return self._shown(pa.concat_tables([some, self._later]).take(pa.array(place)))

    def _shown(self, some: pa.Table) -> pa.Table:
        return some if self._with_deleted else without_deleted(some)

    def _of_new_ids(self) -> pa.Table:
        is_new = np.ones(self._later.num_rows, np.bool_)
        for batch in self._all.to_batches():
            at = self._index.find(batch[self._key].to_numpy())
            is_new[at[at >= 0]] = False
        return self._shown(self._later.filter(pa.array(is_new)))
