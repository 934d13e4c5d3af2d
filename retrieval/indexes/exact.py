"""Exact search, the oracle that recall is measured against.

Shape letters: Q queries, N items, K results, D columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np

from retrieval.arrays import Float32Array, Int64Array
from retrieval.gpu import MOST_RESULTS, gpu_faiss, resources_for

_GPU_SLICE_BYTES = 2 << 30


def exact_top_k(
    query_QD: Float32Array, item_ND: Float32Array, k: int, cards: Sequence[int] = ()
) -> Int64Array:
    """Row numbers of the k largest inner products of each query, int64 (Q, K), padded with -1.

    With GPUs, each answers its share of the queries. The items are processed in slices, so they need not fit there.
    """
    if not cards or k > MOST_RESULTS:
        _, index_QK = faiss.knn(query_QD, item_ND, k, metric=faiss.METRIC_INNER_PRODUCT)
        return np.asarray(index_QK, np.int64)
    cards = cards[: max(1, query_QD.shape[0])]
    shares = np.array_split(query_QD, len(cards))

    def answer(scratch: Any, card: int, share_QD: Float32Array) -> Int64Array:
        about = {"metric": faiss.METRIC_INNER_PRODUCT, "vectorsMemoryLimit": _GPU_SLICE_BYTES}
        _, index_QK = gpu_faiss.knn_gpu(scratch, share_QD, item_ND, k, device=card, **about)
        return np.asarray(index_QK, np.int64)

    given = (resources_for(len(cards)), cards, shares)
    if len(cards) == 1:
        return next(map(answer, *given))
    with ThreadPoolExecutor(len(cards), "gpu") as pool:
        return np.concatenate(list(pool.map(answer, *given)))


def recall_at_k(found_QK: Int64Array, wanted_QK: Int64Array) -> float:
    """Share of the wanted results that were found; -1 pads both. 1.0 if nothing is wanted.

    recall = Σ_q |found_q ∩ wanted_q| / Σ_q |wanted_q|
    """
    wanted = wanted_QK >= 0
    total = int(wanted.sum())
    if total == 0:
        return 1.0
    # One comparison per pair of columns, because K is small and Q may be large.
    hit_QK = np.zeros(wanted_QK.shape, np.bool_)
    for column in range(found_QK.shape[1]):
        hit_QK |= found_QK[:, column : column + 1] == wanted_QK
    return float((hit_QK & wanted).sum() / total)
