"""Faiss on GPUs: the number of GPUs, and the scratch memory that searches share.

Never run on a GPU: written against Faiss 1.15, tested with a stand-in for its GPU classes (`make test-gpu` runs it).
"""

from __future__ import annotations

import threading
from typing import Any

import faiss

gpu_faiss: Any = faiss
"""The module with faiss-gpu's classes, only some of which are in the types of faiss-cpu."""
MOST_RESULTS = 2048
"""Largest k and largest nprobe of a search on a GPU."""
_SCRATCH_BYTES, _PINNED_BYTES = 256 << 20, 64 << 20
_of_thread = threading.local()


class IndexDeviceError(RuntimeError):
    """index.device asks for a GPU that Faiss does not have."""


def visible_gpus() -> int:
    """Number of GPUs that Faiss can use; 0 with faiss-cpu."""
    return int(gpu_faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0


def require_gpu(gpu: int) -> None:
    """Check that the GPUs exist.

    Raises:
        IndexDeviceError: there are none, or too few.
    """
    count = visible_gpus()
    if count == 0:
        raise IndexDeviceError(
            "index.device is 'cuda' but Faiss sees no GPU; install faiss-gpu, or set index.device=auto"
        )
    if gpu >= count:
        raise IndexDeviceError(
            f"index.gpu and index.gpus ask for GPU {gpu}, but Faiss sees {count} GPUs, counted from 0"
        )


def resources() -> Any:
    """This thread's scratch memory on GPUs, allocated once: Faiss shares it between calls, not between threads."""
    return resources_for(1)[0]


def resources_for(cards: int) -> list[Any]:
    """The same for several GPUs that work at once."""
    if not hasattr(_of_thread, "resources"):
        _of_thread.resources = []
    made: list[Any] = _of_thread.resources
    made += [new_resources() for _ in range(cards - len(made))]
    return made[:cards]


def new_resources() -> Any:
    """Scratch memory for one index that any thread may search, one at a time.

    A sixth of Faiss's own default of 1.5 GiB, which would be taken from training's memory.
    """
    made = gpu_faiss.StandardGpuResources()
    made.setTempMemory(_SCRATCH_BYTES)
    made.setPinnedMemory(_PINNED_BYTES)
    return made


_BYTES_OF_A_NUMBER = {"ivf_flat": 4, "ivf_fp16": 2, "ivf_sq8": 1}


def bytes_needed(items: int, dim: int, kind: str, cards: int = 1) -> int:
    """Bytes that an index takes on each of its GPUs while it is built, with room for uneven lists and scratch.

    Args:
        items: in all of it.
        dim: columns.
        kind: index.kind; of one that Faiss has on the CPU only, the GPU holds no items.
        cards: index.gpus.
    """
    of_vector = dim * _BYTES_OF_A_NUMBER[kind] + 4 if kind in _BYTES_OF_A_NUMBER else 0
    return int(1.2 * items * of_vector / cards) + _SCRATCH_BYTES * 2
