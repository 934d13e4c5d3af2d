"""Item vectors of the items that this rank owns, for validation and for the index."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cluster.collectives import Collectives
from cluster.tables.sharded_embedding import ShardedEmbedding
from model.features import ITEM, KeyCollector, item_inputs
from model.two_tower import TwoTower
from streaming.arrays import Int64Array
from streaming.catalogue.catalogue import Catalogue

# What the tower holds of a chunk while it encodes is what encoding costs in memory, whatever the catalogue's size.
_CHUNK_ITEMS = 16_384


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
    # Looking up categories is collective: every rank makes as many calls as the one with the most items.
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
