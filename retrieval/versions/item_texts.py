"""The texts of items whose ids are texts, as the catalogue of a version has them."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.arrays import Int64Array
from retrieval.versions.store import Version

ITEM_TEXTS = "id-texts-items-"
"""Beginning of the names of their files in a version; a version whose ids are all numbers has none."""
_SCHEMA = pa.schema([("id", pa.int64()), ("text", pa.string())])


class ItemTexts:
    """Texts by id. The files are memory-mapped, and sorted by id when they are first used.

    Args:
        version: on this machine.
    """

    def __init__(self, version: Version) -> None:
        tables = [_SCHEMA.empty_table()]
        for file in version.files(ITEM_TEXTS):
            with pa.memory_map(str(version.file(file))) as source:
                tables.append(pa.ipc.open_file(source).read_all().cast(_SCHEMA))
        self._table = pa.concat_tables(tables)

    def of(self, item_ids: Int64Array) -> pa.Array:
        """Arrow strings (n,): the text of each id, null where the id is a number.

        Args:
            item_ids: int64 (n,).
        """
        ids, texts = self._sorted
        if not len(ids):
            return pa.nulls(len(item_ids), pa.string())
        place_N = np.minimum(np.searchsorted(ids, item_ids), len(ids) - 1)
        return texts.take(pa.array(place_N, mask=ids[place_N] != item_ids))

    @cached_property
    def _sorted(self) -> tuple[Int64Array, pa.Array]:
        order = pc.sort_indices(self._table, [("id", "ascending")])
        table = self._table.take(order)
        return table["id"].to_numpy(), table["text"].combine_chunks()
