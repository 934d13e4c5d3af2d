"""Merges shards with the same centroids and codes, built on several ranks, into one index.

Row numbers continue from shard to shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np

from retrieval.arrays import Int64Array
from retrieval.indexes.kinds import finer_of, ivf_of, replace_lists


def merge_into_first(shards: Sequence[Any], *, renumber: bool = True) -> Any:
    """The first shard, with the items of all others appended.

    This does not use `merge_from`, which grows each list by doubling, so that the merged index takes up to twice its
    size.

    Args:
        shards: stored indexes that come from the same `trained_empty`; the others are left as they are.
        renumber: continue row numbers from shard to shard; otherwise rows keep their numbers.
    Raises:
        ValueError: the shards differ in lists, columns or codes.
    """
    ivfs = [ivf_of(shard) for shard in shards]
    first = ivfs[0]
    for number, ivf in enumerate(ivfs[1:], 1):
        if (ivf.nlist, ivf.d, ivf.code_size) != (first.nlist, first.d, first.code_size):
            raise ValueError(
                f"shard {number} has {ivf.nlist} lists of {ivf.d} columns in {ivf.code_size} bytes, "
                f"shard 0 {first.nlist} of {first.d} in {first.code_size}"
            )
    if len(shards) == 1:
        return shards[0]
    total = sum(ivf.ntotal for ivf in ivfs)
    _merge_finer([finer_of(shard) for shard in shards])
    first_rows = np.cumsum([0, *(ivf.ntotal for ivf in ivfs[:-1])]) * int(renumber)
    replace_lists(first, _joined_lists(ivfs, first_rows))
    shards[0].ntotal = first.ntotal = total
    return shards[0]


def _joined_lists(ivfs: Sequence[Any], first_rows: Int64Array) -> Any:
    joined = faiss.ArrayInvertedLists(ivfs[0].nlist, ivfs[0].code_size)
    for number in range(ivfs[0].nlist):
        sizes = [ivf.invlists.list_size(number) for ivf in ivfs]
        joined.resize(number, sum(sizes))
        offset = 0
        for ivf, size, first_row in zip(ivfs, sizes, first_rows, strict=True):
            if size:
                ids_at, codes_at = ivf.invlists.get_ids(number), ivf.invlists.get_codes(number)
                rows = faiss.rev_swig_ptr(ids_at, size) + first_row
                joined.update_entries(number, offset, size, faiss.swig_ptr(rows), codes_at)
                ivf.invlists.release_codes(number, codes_at)
                ivf.invlists.release_ids(number, ids_at)
            offset += size
    return joined


def _merge_finer(finer: Sequence[Any]) -> None:
    if finer[0] is None:
        return
    width = finer[0].code_size
    codes = [faiss.rev_swig_ptr(one.codes.data(), one.ntotal * width) for one in finer if one.ntotal]
    joined = np.concatenate(codes) if codes else np.empty(0, np.uint8)
    finer[0].ntotal = joined.shape[0] // width
    finer[0].codes.resize(joined.shape[0])
    if joined.shape[0]:
        faiss.rev_swig_ptr(finer[0].codes.data(), joined.shape[0])[:] = joined
