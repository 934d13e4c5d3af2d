"""The floating-point format of the towers' matrix products.

| `precision` | towers in training | everything else |
|---|---|---|
| `fp32` | float32 | float32 |
| `tf32` | on a GPU with ten bits of mantissa, sums in float32 | the same, for every float32 product of this process |
| `bf16` | bfloat16, by autocast | float32 |

Weights, gradients, losses, embedding rows and the state of both optimizers are float32 in all three. With bf16 only
training is affected: vectors for validation, index versions and evaluations are encoded in float32, so a version does
not depend on the machine that published it. tf32 applies to the whole process, and so to encoding as well.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from model.config import Precision
from model.transformer import SequenceEncoder

_DENSE = (nn.Linear, nn.Sequential, SequenceEncoder)
"""What multiplies matrices in a tower, from a float tensor to one float tensor."""


def use_precision(model: nn.Module, precision: Precision) -> None:
    """Use a precision for a model's towers from now on; parameters and their names do not change.

    Args:
        model: fresh towers, or towers in float32.
        precision: tf32 also enables TF32 for CUDA in this process; the other two disable it.
    """
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    if precision == "bf16":
        _multiply_in_bf16(model)


def _multiply_in_bf16(module: nn.Module) -> None:
    for child in module.children():
        if isinstance(child, _DENSE):
            child.forward = MethodType(_forward_in_bf16, child)  # type: ignore[method-assign]
        else:
            _multiply_in_bf16(child)


def _forward_in_bf16(module: nn.Module, x: Tensor, *others: Any) -> Tensor:
    forward = type(module).forward
    if not module.training:
        plain: Tensor = forward(module, x, *others)
        return plain
    with torch.autocast(x.device.type, torch.bfloat16):
        rounded: Tensor = forward(module, x, *others)
    return rounded.float()
