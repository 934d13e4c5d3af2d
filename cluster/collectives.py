"""What the ranks say to each other: the only place that calls torch.distributed.

Shape letters: W ranks, N local rows, M rows of all ranks, D columns.

One process without a process group is the same as one rank: every call below is then the identity. The
backend follows the tensor's device (`cpu:gloo,cuda:nccl`): ids travel over gloo, rows stay on the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from streaming.arrays import Int64Array

# torch renamed it in 2.13 and warns of the old name at every call.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_HEADER_BYTES = 8
_DECLINED = -1
"""In place of a number of rows, of a rank that failed before this message."""


class RankFailedError(RuntimeError):
    """A rank declined a gather, because it failed before it; raised on every rank."""

    def __init__(
        self, message: str = "a rank failed before this message and declined to take part in it"
    ) -> None:
        super().__init__(message)  # given again where the error is read in another process


class Collectives:
    """The collectives of one worker group. Every rank must make the same calls in the same order.

    Args:
        group: the ranks among which the calls are made; by default those of the process group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.active = dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank(group) if self.active else 0
        self.world: int = dist.get_world_size(group) if self.active else 1
        self._group = group
        self.broken = False
        """Whether a message failed: what the ranks say to each other is out of step from there on."""
        self.gathers_of_a_step = 0
        """How many calls the model makes in a step (its settings say), once that is known; no rank knows it alone."""
        self._room: dict[str, int] = {}
        self._room_bytes: dict[str, int] = {}

    @classmethod
    def alone(cls) -> Collectives:
        """One rank: this process by itself, also where it belongs to a worker group."""
        own = cls()
        own.active, own.rank, own.world = False, 0, 1
        return own

    def beside(self, timeout: timedelta) -> Collectives:
        """Collective. The same ranks over a connection of their own (gloo), for one other thread of each rank.

        Args:
            timeout: how long a rank waits there for the others.
        """
        if self.world == 1:
            return self.alone()
        return Collectives(dist.new_group(backend="gloo", timeout=timeout))

    @property
    def lost(self) -> bool:
        """Whether the process group is gone, as Ray does away with it when another rank has died."""
        return self.active and not dist.is_initialized()

    def explains(self, error: Exception) -> bool:
        """Whether an error only says that another rank has died: what happened is that rank's to tell."""
        return self.lost or isinstance(error, dist.DistError) or "gloo/transport/" in str(error)

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """The sum over ranks, in place; the same bits on every rank."""
        if self.world > 1:
            self._send(dist.all_reduce, x)
        return x

    def exchange(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Every rank's row of numbers: float64 (K,) to float64 (W, K). Also a barrier."""
        if self.world == 1:
            return values[None, :].copy()
        out = torch.empty(self.world, values.shape[0], dtype=torch.float64)
        self._send(_all_gather, out.view(-1), torch.from_numpy(np.ascontiguousarray(values)))
        return cast("npt.NDArray[np.float64]", out.numpy())

    def gather_rows(self, x: Tensor, slot: str = "") -> tuple[Tensor, list[int]]:
        """Concatenate (N, ...) over ranks, in rank order, to (M, ...), and each rank's N; N may differ.

        Args:
            x: the same dtype and trailing shape on every rank.
            slot: names calls that come again in every step with sizes of the same order; on the CPU they take one
                message instead of two.
        Raises:
            RankFailedError: a rank called `decline` in place of this.
        """
        if self.world == 1:
            return x, [x.shape[0]]
        if slot and x.device.type == "cpu":
            return self._gather_at_once(x, slot)
        sizes = self._exchange_sizes(x.shape[0])
        return self._gather_known(x, sizes), sizes

    def decline(self, device: torch.device, slot: str = "") -> None:
        """Collective. In place of `gather_rows` of a tensor on this device, by a rank that has failed.

        Raises:
            RankFailedError: always, on every rank.
        """
        if self.world > 1 and slot and device.type == "cpu":
            self._exchange_at_once(_DECLINED, None, slot)
        elif self.world > 1:
            self._exchange_sizes(_DECLINED)
        raise RankFailedError

    def gather_ints(self, values: Int64Array, slot: str = "") -> Int64Array:
        """Concatenate int64 (N, ...) over ranks, in rank order; `slot` as in `gather_rows`."""
        gathered, _ = self.gather_rows(torch.from_numpy(np.ascontiguousarray(values)), slot)
        return cast("Int64Array", gathered.numpy())

    def _gather_known(self, x: Tensor, sizes: list[int]) -> Tensor:
        longest = max(sizes)
        if longest == 0:
            return x
        mine = x.contiguous()
        if x.shape[0] < longest:
            mine = torch.cat([mine, mine.new_zeros(longest - x.shape[0], *x.shape[1:])])
        out = mine.new_empty(self.world * longest, *x.shape[1:])
        self._send(_all_gather, out, mine)
        if all(size == longest for size in sizes):
            return out
        return torch.cat([out[r * longest : r * longest + size] for r, size in enumerate(sizes)])

    def _gather_at_once(self, x: Tensor, slot: str) -> tuple[Tensor, list[int]]:
        """The count travels in front of the rows, in the room that earlier calls needed.

        Every rank sees all counts, so all have the same room, and all know when it was too small for somebody.
        """
        row_bytes, room = math.prod(x.shape[1:]) * x.element_size(), self._room.get(slot, 0)
        self._room_bytes[slot] = room * row_bytes
        mine = x.contiguous().view(-1).view(torch.uint8) if 0 < x.shape[0] <= room else None
        out, sizes = self._exchange_at_once(x.shape[0], mine, slot)
        if max(sizes) > room:
            self._room[slot] = max(sizes) * 5 // 4
            self._room_bytes[slot] = self._room[slot] * row_bytes
            return self._gather_known(x, sizes), sizes
        ends = [_HEADER_BYTES + size * row_bytes for size in sizes]
        rows = torch.cat([out[rank, _HEADER_BYTES:end] for rank, end in enumerate(ends)])
        return rows.view(x.dtype).view(sum(sizes), *x.shape[1:]), sizes

    def _exchange_at_once(self, size: int, rows: Tensor | None, slot: str) -> tuple[Tensor, list[int]]:
        """Every rank's count and, as bytes in the slot's room, its rows."""
        mine = torch.zeros(_HEADER_BYTES + self._room_bytes.get(slot, 0), dtype=torch.uint8)
        mine[:_HEADER_BYTES].view(torch.int64)[0] = size
        if rows is not None:
            mine[_HEADER_BYTES : _HEADER_BYTES + rows.shape[0]] = rows
        out = torch.empty(self.world, mine.shape[0], dtype=torch.uint8)
        self._send(_all_gather, out.view(-1), mine)
        sizes = out[:, :_HEADER_BYTES].contiguous().view(torch.int64)[:, 0].tolist()
        return out, _all_there(sizes)

    def _exchange_sizes(self, size: int) -> list[int]:
        sizes = self.exchange(np.array([size], np.float64))[:, 0]
        return _all_there(sizes.astype(np.int64).tolist())

    def all_to_all(self, x: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """Rows (sum(send), ...) cut by destination rank, to rows (sum(receive), ...) in source-rank order."""
        if self.world == 1:
            return x
        out = x.new_empty(sum(receive), *x.shape[1:])
        self._send(dist.all_to_all_single, out, x.contiguous(), receive, send)
        return out

    def gather_objects(self, value: object) -> list[Any]:
        """One small Python value of every rank, on every rank (for checkpoints, not the hot path)."""
        if self.world == 1:
            return [value]
        out: list[Any] = [None] * self.world
        self._send(dist.all_gather_object, out, value)
        return out

    def broadcast_bytes(self, payload: bytes) -> bytes:
        """Rank 0's bytes, on every rank; every rank must know that there are some."""
        if self.world == 1:
            return payload
        size = torch.tensor([len(payload)])
        self._send(dist.broadcast, size, 0)
        buffer = torch.empty(int(size.item()), dtype=torch.uint8)
        if self.rank == 0:
            buffer = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        self._send(dist.broadcast, buffer, 0)
        return bytes(buffer.numpy())

    def _send(self, call: Callable[..., object], *arguments: object) -> None:
        try:
            call(*arguments, group=self._group)
        except Exception:
            self.broken = True
            raise


def _all_there(sizes: list[int]) -> list[int]:
    if min(sizes) == _DECLINED:
        raise RankFailedError
    return sizes


class CrossRankGather:
    """The `gather` that the model is given: concatenation over ranks that gradients flow back through.

    Calls are chained by a token, so that their backward collectives run in the reverse order on every
    rank, also on one whose part of the batch is empty and whose loss depends on nothing. `close(loss)` ties
    the chain to the loss: without it a rank could skip a collective that the others wait in.
    """

    def __init__(self, collectives: Collectives, device: torch.device) -> None:
        self._collectives, self._device = collectives, device
        if collectives.world > 1:
            self._token = torch.zeros((), device=device, requires_grad=True)
        self._calls = 0
        self._to_come: list[tuple[torch.Size, torch.dtype]] = []
        """What the backward pass has yet to sum over the ranks, the last first."""

    def __call__(self, x: Tensor) -> Tensor:
        """(N, ...) to (M, ...). Integer and boolean tensors pass without a gradient."""
        if self._collectives.world == 1:
            return x
        slot = self._next_slot()
        if not x.is_floating_point() or not torch.is_grad_enabled():
            as_sent = x.to(torch.uint8) if x.dtype == torch.bool else x
            return self._collectives.gather_rows(as_sent, slot)[0].to(x.dtype)
        gathered, self._token = _GatherRows.apply(x, self._token, self, slot)  # type: ignore[no-untyped-call]
        return cast(Tensor, gathered)

    def close(self, loss: Tensor) -> Tensor:
        """Collective. The same loss, made to depend on every gather.

        Raises:
            RankFailedError: a rank called `decline`.
        """
        if self._collectives.world == 1:
            return loss
        if not self.complete:
            # The first time, so that all ranks know for later steps that what comes next is the backward pass.
            calls = self._calls
            self._collectives.gather_rows(torch.empty(0, device=self._device), self._next_slot())
            self._collectives.gathers_of_a_step = calls
        return loss + 0.0 * self._token

    @property
    def complete(self) -> bool:
        """Whether all ranks go on to the backward pass without another message."""
        return 0 < self._collectives.gathers_of_a_step == self._calls

    def decline(self) -> None:
        """Collective. In place of the next call, or of `close`, by a rank that has failed and is not `complete`.

        Raises:
            RankFailedError: always, on every rank.
        """
        self._collectives.decline(self._device, self._next_slot())

    def drain(self) -> None:
        """Collective. In place of the rest of a backward pass that failed: the others' gradients become NaN."""
        while self._to_come:
            shape, dtype = self._to_come[-1]
            self.sum_gradients(torch.full(shape, math.nan, dtype=dtype, device=self._device))

    def forward_rows(self, x: Tensor, slot: str) -> tuple[Tensor, int]:
        """The rows of all ranks, and where this rank's begin."""
        gathered, sizes = self._collectives.gather_rows(x, slot)
        self._to_come.append((gathered.shape, gathered.dtype))
        return gathered, sum(sizes[: self._collectives.rank])

    def sum_gradients(self, gradient: Tensor) -> Tensor:
        """The sum over ranks, in place, of the last gather that has none yet."""
        self._to_come.pop()
        return self._collectives.all_reduce_sum(gradient)

    def _next_slot(self) -> str:
        # The model makes the same calls in every step, so a call's place names it.
        slot, self._calls = f"model {self._calls}", self._calls + 1
        return slot


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, token: Tensor, gather: CrossRankGather, slot: str
    ) -> tuple[Tensor, Tensor]:
        gathered, ctx.start = gather.forward_rows(x.detach(), slot)
        ctx.gather, ctx.size = gather, x.shape[0]
        return gathered.clone() if gathered is x else gathered, token.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        gathered, token = gradients
        total = ctx.gather.sum_gradients(gathered.contiguous().clone())
        return total[ctx.start : ctx.start + ctx.size], token, None, None
