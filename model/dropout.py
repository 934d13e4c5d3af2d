"""Dropout that draws eight masks from one random number.

On a CPU, PyTorch draws a double per element, which took a quarter of a training step (512,000 elements: 7.8 ms, here
1.4; `make bench NAME=packing` trains with it). Ratios are multiples of 1/256; the scale uses the rounded ratio, so the
mean stays exact.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEVELS = 256


def dropout(x: Tensor, ratio: float, training: bool) -> Tensor:
    """Inverted dropout: each element is zero with probability `ratio` (rounded to 1/256); the others are scaled up.

    Draws from torch's default generator; on CUDA it is torch's own dropout, which is fast.

    Args:
        x: floats of any shape.
        ratio: in [0, 1).
        training: if false, x is returned as it is.
    """
    if not training or ratio == 0.0 or x.numel() == 0:
        return x
    if x.is_cuda:
        # What F.dropout calls on a GPU: one kernel for the numbers and the product.
        out: Tensor = torch.native_dropout(x, ratio, True)[0]
        return out
    dropped = min(max(round(ratio * _LEVELS), 1), _LEVELS - 1)
    # The whole range of int64: otherwise the highest bit of every eighth byte would always be 0.
    bits = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    keep = bits.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
    return x * keep.to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))


class Dropout(nn.Module):
    """`dropout` as a module."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        """Floats of any shape to the same shape."""
        return dropout(x, self.ratio, self.training)
