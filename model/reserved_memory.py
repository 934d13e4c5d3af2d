"""Arrays that grow in place: addresses are reserved for all of the machine's memory; pages are used when written.

Growing by copying needs the old and the new array at once and invalidates views. Here a view stays valid, and rows
that were never written use no memory.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

_LINUX = sys.platform.startswith("linux")
# The mmap module names it only since Python 3.13.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if _LINUX else 0)
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
_LEAST_BYTES = 1 << 16


def machine_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class GrowingArray:
    """A zero-filled array of a fixed trailing shape and dtype, whose number of rows can grow.

    Args:
        rows: how many to reserve addresses for. If the system refuses (ulimit -v, strict overcommit), fewer are
            reserved, and growing past them copies.
        shape: of a row.
        dtype: of its elements.
    """

    def __init__(self, rows: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._whole = self._reserve(rows)

    def first(self, rows: int) -> npt.NDArray[Any]:
        """A view of the first rows; rows that were never written are zero."""
        if rows > self._whole.shape[0]:
            old, self._whole = self._whole, self._reserve(rows * 3 // 2)
            self._whole[: old.shape[0]] = old
        return self._whole[:rows]

    def _reserve(self, rows: int) -> npt.NDArray[Any]:
        row_bytes = max(1, math.prod(self._shape) * self._dtype.itemsize)
        size = max(_LEAST_BYTES, rows * row_bytes)
        while True:
            try:
                mapping = mmap.mmap(-1, size, flags=_FLAGS)
                break
            except OSError:
                if size <= _LEAST_BYTES:
                    raise
                size = max(_LEAST_BYTES, size // 2)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            mapping.madvise(mmap.MADV_HUGEPAGE)
        fitting = size // row_bytes
        flat = np.frombuffer(mapping, np.uint8, fitting * row_bytes)
        return flat.view(self._dtype).reshape(fitting, *self._shape)
