"""Item vectors of the items that this rank owns, for validation and for the index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from cluster.collectives import Collectives
from cluster.queries.query_side import Rows
from cluster.tables.sharded_embedding import ShardedEmbedding
from model.features import ITEM, Categories, KeyCollector, item_inputs
from model.transfer import to_device
from model.two_tower import TwoTower
from streaming.arrays import Float32Array, Int64Array
from streaming.catalogue.catalogue import Catalogue

# The memory for encoding is what the tower needs for one chunk, whatever the catalogue's size.
_CHUNK_ITEMS = 16_384
SLICE_ITEMS = 8192
_PADDED_TO = 64
"""Products of matrices with a handful of rows are summed in another order: their last bits differ."""


@torch.no_grad()
def encode_owned_items(
    model: TwoTower, table: ShardedEmbedding, catalogue: Catalogue, comm: Collectives
) -> tuple[Int64Array, Tensor]:
    """Collective. Ids int64 (n,) of the known items that this rank owns and their vectors float32 (n, D).

    An item that was never trained is encoded too, from its initial row, its categories and its augmented vector.
    """
    known = catalogue.item_ids
    tables = np.full(known.shape[0], ITEM, np.int16)
    mine = known[table.owners(tables, known) == comm.rank]
    # Looking up categories is collective, so every rank makes as many calls as the rank with the most items.
    most = int(comm.exchange(np.array([mine.shape[0]], np.float64)).max())
    model.eval()
    parts: list[Tensor] = []
    failure: Exception | None = None
    for start in range(0, most, _CHUNK_ITEMS):
        chunk = mine[start : start + _CHUNK_ITEMS]
        keys = KeyCollector()
        items = item_inputs(chunk, catalogue.categories, keys, np.zeros(chunk.shape[0], np.bool_))
        lookup, items = table.lookup_with(items, *keys.keys(), create=False)
        try:
            parts.append(model.encode_items(lookup.rows_UD, items).vectors_CD)
        except Exception as error:  # the other ranks wait for this one's lookups
            failure = error
    if failure is not None:
        raise failure
    if not parts:
        return mine, torch.zeros(0, model.config.dim, device=table.device)
    return mine, parts[0] if len(parts) == 1 else torch.cat(parts)


@torch.no_grad()
def encode_items(
    model: TwoTower, rows: Rows, items: Iterable[tuple[Int64Array, Int64Array]]
) -> Iterator[tuple[Int64Array, Float32Array]]:
    """Ids int64 (n,) and vectors float32 (n, D) of items, in order, in slices of at most `SLICE_ITEMS`.

    An item's vector does not depend on the other items of its slice, so it is the same for any number of ranks.

    Args:
        model: the towers.
        rows: of the items and their categories.
        items: slices of ids int64 (n,) and categories int64 (n, K), 0 if there are fewer; at most `SLICE_ITEMS` each.
    """
    if model.training:  # setting it costs 2 ms of a delta
        model.eval()
    device = next(model.parameters()).device
    unit = _PADDED_TO if device.type == "cpu" else SLICE_ITEMS
    for ids, category_CK in items:
        padding = ((0, -ids.shape[0] % unit), (0, 0))
        padded_C, padded_CK = np.pad(ids, padding[0], mode="edge"), np.pad(category_CK, padding, mode="edge")
        keys = KeyCollector()
        inputs = item_inputs(padded_C, _given(padded_CK), keys)
        rows_UD, inputs = to_device((rows.rows_of(*keys.keys()), inputs), device)
        vectors: Float32Array = model.encode_items(rows_UD, inputs).vectors_CD[: ids.shape[0]].cpu().numpy()
        yield ids, vectors


def _given(category_CK: Int64Array) -> Categories:
    return lambda _: category_CK


def gather_known_items(
    ids: Int64Array, vectors: Tensor, catalogue: Catalogue, table: ShardedEmbedding, comm: Collectives
) -> Tensor:
    """Collective. The vectors of all known items, float32 (I, D), in the order of `catalogue.item_ids`."""
    if comm.world == 1:
        return vectors
    gathered, _ = comm.gather_rows(vectors)
    known = catalogue.item_ids
    owners = table.owners(np.full(known.shape[0], ITEM, np.int16), known)
    ordered = torch.empty_like(gathered)
    ordered[torch.from_numpy(np.argsort(owners, kind="stable")).to(gathered.device)] = gathered
    return ordered
