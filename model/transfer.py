"""Copies many small tensors to or from a device at once: each copy has a fixed cost that exceeds that of its bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

_ALIGNED_TO = 16
_Part = TypeVar("_Part")


def to_device(parts: _Part, device: torch.device | str) -> _Part:
    """The same object with its tensors on a device, in one copy from pinned memory; on the CPU, the object itself.

    The copy is ordered before later work on the current stream.

    Args:
        parts: a CPU tensor without gradient, or a nested tuple, list or dataclass of them; other values are kept.
        device: the target.
    """
    if torch.device(device).type == "cpu":
        return parts
    moved = iter(_in_one_copy(list(_tensors(parts)), device))
    rebuilt: _Part = _rebuilt(parts, moved)
    return rebuilt


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of one device and dtype on the CPU, by one copy that the host waits for; CPU tensors as they are."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).cpu()
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def _rebuilt(value: Any, moved: Iterator[Tensor]) -> Any:
    """In the order of `_tensors`."""
    if isinstance(value, Tensor):
        return next(moved)
    if isinstance(value, tuple | list):
        return type(value)(_rebuilt(part, moved) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _rebuilt(getattr(value, f.name), moved) for f in fields(value)})
    return value


def _in_one_copy(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    starts, end = [], 0
    for tensor in tensors:
        starts.append(end)
        size = tensor.numel() * tensor.element_size()
        end += -(-size // _ALIGNED_TO) * _ALIGNED_TO
    host = torch.empty(end, dtype=torch.uint8, pin_memory=torch.device(device).type == "cuda")
    for tensor, start in zip(tensors, starts, strict=True):
        if tensor.numel():  # an empty tensor may have strides that a view as bytes cannot have
            flat = tensor.contiguous().view(-1).view(torch.uint8)
            host[start : start + flat.shape[0]].copy_(flat)
    there = host.to(device, non_blocking=True)
    return [
        there[start : start + tensor.numel() * tensor.element_size()].view(tensor.dtype).view(tensor.shape)
        for tensor, start in zip(tensors, starts, strict=True)
    ]
