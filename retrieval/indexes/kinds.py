"""The kinds of index as Faiss objects: the inverted lists, and the finer codes that some kinds rank with.

Shape letters: N items, S sampled items, L lists, D columns.

A stored index is the form in files, and the form in which shards are merged. `ivf_pqfs` is stored as lists of plain
codes with finer codes beside them, and packed for the fast scan when it is opened: Faiss 1.15.1 merges packed lists
without an error but incorrectly (half of the results of a merged index differed).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import faiss
import numpy as np

from retrieval.arrays import Float32Array, Int64Array
from retrieval.config import IndexConfig
from retrieval.indexes.coarse import assign_lists

CODES = {
    "ivf_fp16": faiss.ScalarQuantizer.QT_fp16,
    "ivf_sq8": faiss.ScalarQuantizer.QT_8bit,
    "fp16": faiss.ScalarQuantizer.QT_fp16,
    "sq8": faiss.ScalarQuantizer.QT_8bit,
}
"""Faiss's code for a number, for kinds that do not store float32, and for `index.refine`."""
GPU_KINDS = frozenset(("ivf_flat", "ivf_fp16", "ivf_sq8"))
"""Kinds for which Faiss has a class on GPUs; others are built and searched on the CPU."""
_BY_INNER_PRODUCT = faiss.METRIC_INNER_PRODUCT
_MOST_SAMPLED = 65_536
_BITS, _CENTROIDS = 4, 16
_CODES_PER_BLOCK = 32
_NUDGE = np.float32(1e-6)


def codec_sample(vectors_ND: Float32Array, kind: str) -> Float32Array:
    """Rows to train a kind's codes on, float32 (S, D): at most about 65,536, evenly spaced; one if none are needed."""
    learns = kind not in ("ivf_flat", "ivf_fp16")
    step = max(1, vectors_ND.shape[0] // _MOST_SAMPLED) if learns else vectors_ND.shape[0]
    return np.ascontiguousarray(vectors_ND[::step])


def trained_empty(centroid_LD: Float32Array, sample_SD: Float32Array, config: IndexConfig) -> faiss.Index:
    """A stored index without items, its codes trained.

    Args:
        centroid_LD: float32, of the inverted lists.
        sample_SD: float32, at least one row: see `codec_sample`.
        config: kind, refine, refine_factor; device, which assigns the sample to lists.
    """
    lists, dim = centroid_LD.shape
    quantizer = faiss.IndexFlatIP(dim)
    quantizer.add(centroid_LD)
    if config.kind == "ivf_pqfs":
        return _refined(quantizer, centroid_LD, sample_SD, config)
    if config.kind == "ivf_flat":
        index: faiss.IndexIVF = faiss.IndexIVFFlat(quantizer, dim, lists, _BY_INNER_PRODUCT)
    else:
        codes = CODES[config.kind]
        index = faiss.IndexIVFScalarQuantizer(quantizer, dim, lists, codes, _BY_INNER_PRODUCT, False)
    index.train(sample_SD)
    return index


def _refined(
    quantizer: faiss.Index, centroid_LD: Float32Array, sample_SD: Float32Array, config: IndexConfig
) -> faiss.Index:
    lists, dim = centroid_LD.shape
    sample = np.resize(
        sample_SD, (max(sample_SD.shape[0], _CENTROIDS), dim)
    )  # repeats items if there are few
    ivf = faiss.IndexIVFPQ(quantizer, dim, lists, sub_vectors(dim), _BITS, _BY_INNER_PRODUCT)
    ivf.pq.cp.min_points_per_centroid = 1
    # Not `train`, which would assign lists by inner product, while items go to the nearest centroid.
    assigned = assign_lists(sample, centroid_LD, config)
    residual = np.ascontiguousarray(sample - centroid_LD[assigned])
    residual[0] += 0.0 if residual.any() else _NUDGE  # see `search`
    ivf.train_encoder(sample.shape[0], faiss.swig_ptr(residual), faiss.swig_ptr(assigned))
    ivf.is_trained = True
    finer = faiss.IndexScalarQuantizer(dim, CODES[config.refine], _BY_INNER_PRODUCT)
    finer.train(sample)
    both = faiss.IndexRefine(ivf, finer)
    both.k_factor = config.refine_factor
    return both


def sub_vectors(dim: int) -> int:
    """Number of 4-bit parts of a vector: one per two columns, or one per column if their number is odd."""
    return dim // 2 if dim % 2 == 0 else dim


def ivf_of(stored: Any) -> Any:
    """The inverted lists of a stored index."""
    stored = faiss.downcast_index(stored) if type(stored) is faiss.Index else stored
    return faiss.downcast_index(stored.base_index) if isinstance(stored, faiss.IndexRefine) else stored


def finer_of(stored: Any) -> Any:
    """The finer codes that a stored index ranks with, by row; None if it ranks by those in its lists."""
    return faiss.downcast_index(stored.refine_index) if isinstance(stored, faiss.IndexRefine) else None


def add(stored: Any, vectors_ND: Float32Array, assigned_N: Int64Array) -> None:
    """Append items to a stored index, after its existing rows.

    Args:
        stored: from `trained_empty`.
        vectors_ND: float32, C-contiguous.
        assigned_N: int64, the list of each.
    """
    count = vectors_ND.shape[0]
    vectors, assigned = faiss.swig_ptr(vectors_ND), faiss.swig_ptr(assigned_N)
    ivf_of(stored).add_core(count, vectors, None, assigned)
    finer = finer_of(stored)
    if finer is not None:
        finer.add(vectors_ND)
        stored.ntotal = finer.ntotal


def searchable(stored: Any, release: bool) -> tuple[Any, Any]:
    """The searchable form: the inverted lists, and the index through which they are searched.

    Args:
        stored: complete; nothing may be added afterwards.
        release: free the stored lists if packed ones replace them; then `stored` cannot be saved or merged.
    """
    if not isinstance(stored, faiss.IndexRefine):
        return stored, stored
    plain = ivf_of(stored)
    packed = faiss.IndexIVFPQFastScan(plain, _CODES_PER_BLOCK)
    through: Any = faiss.IndexRefine(packed, finer_of(stored))
    through.k_factor = stored.k_factor
    # Both point into it: centroids and finer codes are its own.
    through.referenced_objects = [packed, stored]
    if release:
        replace_lists(plain, faiss.ArrayInvertedLists(plain.nlist, plain.code_size))
    return packed, through


def without_items(ivf: Any) -> Any:
    """An index of one of the GPU's kinds with the same centroids and codes, and no items."""
    if isinstance(ivf, faiss.IndexIVFFlat):
        return faiss.IndexIVFFlat(ivf.quantizer, ivf.d, ivf.nlist, ivf.metric_type)
    codes = ivf.sq.qtype
    empty = faiss.IndexIVFScalarQuantizer(ivf.quantizer, ivf.d, ivf.nlist, codes, ivf.metric_type, False)
    empty.sq = ivf.sq
    empty.is_trained = True
    return empty


def as_stored(ivf: Any, vectors_ND: Float32Array) -> Float32Array:
    """Vectors as lists that are not packed return them, float32 (N, D): after encoding."""
    if isinstance(ivf, faiss.IndexIVFFlat):
        return vectors_ND
    return np.asarray(ivf.sq.decode(ivf.sq.compute_codes(vectors_ND)), np.float32)


def replace_lists(ivf: Any, lists: Any) -> None:
    """Give an index other inverted lists, which it then owns."""
    ivf.replace_invlists(lists, True)
    lists.this.disown()


def search(through: Any, query_QD: Float32Array, k: int, nprobe: int) -> tuple[Int64Array, Float32Array]:
    """Rows int64 (Q, K), -1 padded, and inner products float32 (Q, K), best first.

    Args:
        through: from `searchable`, or an index of a GPU.
        query_QD: float32, C-contiguous.
        k: number of results.
        nprobe: number of lists; not the index's own setting, which threads share.
    """
    settings = parameters(through, k, nprobe)
    scores_QK, rows_QK = through.search(query_QD, k, params=settings)
    if not isinstance(through, faiss.IndexRefine):
        return rows_QK, scores_QK
    lost = np.flatnonzero(rows_QK[:, 0] < 0)
    if lost.shape[0]:
        # The fast scan divides by the range of a query's products with the codes, and finds nothing if that is 0.
        moved = query_QD[lost] + _NUDGE * np.abs(query_QD[lost]).max(axis=1, keepdims=True, initial=1.0)
        scores_QK[lost], rows_QK[lost] = through.search(moved, k, params=settings)
    return rows_QK, np.where(rows_QK >= 0, scores_QK, -np.inf)


def search_lists(
    ivf: Any,
    query_QD: Float32Array,
    k: int,
    list_QP: Int64Array,
    closeness_QP: Float32Array,
    only: Any = None,
) -> tuple[Int64Array, Float32Array]:
    """Like `search`, in lists that are already chosen, so that two indexes with the same centroids choose them once.

    Args:
        ivf: inverted lists on the CPU that are not packed.
        query_QD: float32, C-contiguous.
        k: number of results.
        list_QP: int64, C-contiguous, the lists of each query, and closeness_QP: float32, its products with their
            centroids.
        only: Faiss's selector of rows; by default all.
    """
    queries, lists = list_QP.shape
    settings = _parameters(lists, None)
    if only is not None:
        settings = faiss.SearchParametersIVF()
        settings.nprobe, settings.sel = lists, only
    rows_QK, scores_QK = np.empty((queries, k), np.int64), np.empty((queries, k), np.float32)
    given = [faiss.swig_ptr(array) for array in (list_QP, closeness_QP, scores_QK, rows_QK)]
    ivf.search_preassigned_c(queries, faiss.swig_ptr(query_QD), k, *given, False, settings)
    return rows_QK, scores_QK


@lru_cache(maxsize=64)
def _parameters(nprobe: int, refine_factor: float | None) -> Any:
    """Faiss's parameters of one search; Faiss only reads them, so threads can share them."""
    probes = faiss.SearchParametersIVF()
    probes.nprobe = nprobe
    if refine_factor is None:
        return probes
    refine = faiss.IndexRefineSearchParameters()
    refine.k_factor = refine_factor
    refine.base_index_params = probes
    return refine


def parameters(through: Any, k: int, nprobe: int) -> Any:
    """Faiss's parameters of a search for k results in `nprobe` lists."""
    if not isinstance(through, faiss.IndexRefine):
        return _parameters(nprobe, None)
    # More results than items would only be padded.
    return _parameters(nprobe, max(1.0, min(through.k_factor, through.ntotal / k)))
