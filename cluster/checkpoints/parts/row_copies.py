"""Copies rows from a device for a base checkpoint, during training and without delaying it.

On a GPU, the copies run on a separate stream, through one pinned buffer. On the default stream, every slice would queue
behind the pending training steps, and the next step behind the slice.

A slice is read after all work that training had queued when the slice was requested, such as the growth of a table.
Rows that training changes meanwhile may be read half changed; they are complete in the checkpoint's `changes`. A table
that grows frees its old tensors only after the slice has been read.

Never run on a GPU: tested with a stand-in for CUDA's streams (`make test-gpu` runs it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.transfer import to_device


class RowCopies:
    """Copies rows for one thread at a time.

    Args:
        stream: of the rows' GPU, used only for this; None copies on the current one, as on a CPU.
        slice_bytes: maximum size of one tensor's rows per call, if there is a stream.
    """

    def __init__(self, stream: torch.cuda.Stream | None, slice_bytes: int) -> None:
        self._stream, self._slice_bytes = stream, slice_bytes
        self._pinned: Tensor | None = None

    @staticmethod
    def beside_training(device: torch.device, slice_bytes: int) -> RowCopies:
        """With a separate stream if the device is a GPU."""
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        return RowCopies(stream, slice_bytes)

    def read(self, tensors: Sequence[Tensor], rows: npt.NDArray[np.int64]) -> list[Tensor]:
        """These rows of each tensor, on the CPU.

        Args:
            tensors: of one device, (C, ...) each.
            rows: int64 (n,), indices along the first axis.
        """
        where = torch.from_numpy(rows)
        if self._stream is None:
            where = to_device(where, tensors[0].device)
            return [tensor.detach().index_select(0, where).cpu() for tensor in tensors]
        with torch.cuda.stream(self._stream):
            self._stream.wait_stream(torch.cuda.default_stream(tensors[0].device))
            where = to_device(where, tensors[0].device)
            return [self._through_the_buffer(tensor.detach(), where) for tensor in tensors]

    def _through_the_buffer(self, tensor: Tensor, where: Tensor) -> Tensor:
        stream: Any = self._stream
        tensor.record_stream(stream)
        found = tensor.index_select(0, where)
        if self._pinned is None:
            self._pinned = torch.empty(self._slice_bytes, dtype=torch.uint8, pin_memory=True)
        size = found.numel() * found.element_size()
        staged = self._pinned[:size].view(found.dtype).view(found.shape)
        staged.copy_(found, non_blocking=True)
        stream.synchronize()  # this thread waits, training does not
        return staged.clone()
