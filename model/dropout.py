"""Dropout that draws eight masks from one random number.

PyTorch draws a double per element on a CPU: a quarter of a training step's time went there (512,000 elements take
7.8 ms, here 1.4; `make bench NAME=packing` trains with it). Chances come in steps of 1/256, which the scale takes into
account, so the mean stays exact.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEVELS = 256


def dropout(x: Tensor, ratio: float, training: bool) -> Tensor:
    """Inverted dropout: each element is zero with chance `ratio` (rounded to 1/256), the others grow to keep the mean.

    Draws from torch's default generator. CUDA has a fast one of its own.

    Args:
        x: floats of any shape.
        ratio: in [0, 1).
        training: off gives x.
    """
    if not training or ratio == 0.0 or x.numel() == 0:
        return x
    if x.is_cuda:
        # What F.dropout calls on a GPU: one kernel for the numbers and the product.
        out: Tensor = torch.native_dropout(x, ratio, True)[0]
        return out
    dropped = min(max(round(ratio * _LEVELS), 1), _LEVELS - 1)
    # The whole range of int64, or the highest bit of every eighth byte would always be 0.
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
