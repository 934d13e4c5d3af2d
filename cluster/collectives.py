"""Communication between ranks: the only module that calls torch.distributed.

Shape letters: W ranks, N local rows, M rows of all ranks, D columns.

A process without a process group is a single rank: every call below is then the identity. The backend follows the
tensor's device (`cpu:gloo,cuda:nccl`): ids are sent over gloo, and rows stay on the GPU.
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

# torch renamed it in 2.13 and warns about the old name in every call.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_HEADER_BYTES = 8
_DECLINED = -1
"""Sent instead of a number of rows by a rank that failed before this message."""


class RankFailedError(RuntimeError):
    """A rank declined a gather, because it failed before it; raised on every rank."""

    def __init__(
        self, message: str = "a rank failed before this message and declined to take part in it"
    ) -> None:
        super().__init__(message)  # passed on so that another process can recreate the error


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
        """Whether a message failed; from then on, the ranks' messages are out of step."""
        self.gathers_of_a_step: dict[int, int] = {}
        """Number of calls that the model makes in a step of each kind, once all ranks know it."""
        self._room: dict[str, int] = {}
        self._room_bytes: dict[str, int] = {}

    @classmethod
    def alone(cls) -> Collectives:
        """A single rank: this process alone, even if it belongs to a worker group."""
        own = cls()
        own.active, own.rank, own.world = False, 0, 1
        return own

    def beside(self, timeout: timedelta) -> Collectives:
        """Collective. The same ranks over a separate connection (gloo), for one other thread of each rank.

        Args:
            timeout: how long a rank waits there for the others.
        """
        if self.world == 1:
            return self.alone()
        return Collectives(dist.new_group(backend="gloo", timeout=timeout))

    @property
    def lost(self) -> bool:
        """Whether the process group is gone; Ray destroys it when another rank dies."""
        return self.active and not dist.is_initialized()

    def explains(self, error: Exception) -> bool:
        """Whether an error only means that another rank has died; that rank reports the cause."""
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
            slot: names calls that are repeated in every step with similar sizes; on the CPU they need one message
                instead of two.
        Raises:
            RankFailedError: a rank called `decline` instead of this.
        """
        if self.world == 1:
            return x, [x.shape[0]]
        if slot and x.device.type == "cpu":
            return self._gather_at_once(x, slot)
        sizes = self._exchange_sizes(x.shape[0])
        return self._gather_known(x, sizes), sizes

    def decline(self, device: torch.device, slot: str = "") -> None:
        """Collective. Called instead of `gather_rows` of a tensor on this device by a rank that has failed.

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
        """The count is sent in front of the rows, in a buffer of the size that earlier calls needed.

        Every rank sees all counts, so all have buffers of one size, and all know if it was too small for any rank.
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
        """Every rank's count and its rows, as bytes in the slot's buffer."""
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
        """Rank 0's bytes, on every rank; every rank must know that rank 0 sends some."""
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
    """The model's `gather`: concatenation over ranks, with gradients.

    Calls are chained by a token, so that their backward collectives run in reverse order on every rank, even if a
    rank's part of the batch is empty and its loss depends on nothing. `close(loss)` connects the chain to the loss;
    otherwise a rank could skip a collective in which the others wait.

    Args:
        collectives: the ranks.
        device: of the tensors.
        kind: of the step; the model makes the same calls in every step of a kind.
    """

    def __init__(self, collectives: Collectives, device: torch.device, kind: int = 0) -> None:
        self._collectives, self._device, self._kind = collectives, device, kind
        if collectives.world > 1:
            self._token = torch.zeros((), device=device, requires_grad=True)
        self._calls = 0
        self._to_come: list[tuple[torch.Size, torch.dtype]] = []
        """The gathers whose gradients the backward pass has still to sum over the ranks, the last one first."""

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
            # Only in the first step of a kind; after that, all ranks know that the backward pass comes next.
            calls = self._calls
            self._collectives.gather_rows(torch.empty(0, device=self._device), self._next_slot())
            self._collectives.gathers_of_a_step[self._kind] = calls
        return loss + 0.0 * self._token

    @property
    def complete(self) -> bool:
        """Whether all ranks continue with the backward pass without another message."""
        return self._collectives.gathers_of_a_step.get(self._kind) == self._calls

    def decline(self) -> None:
        """Collective. Called instead of the next call, or of `close`, by a rank that has failed and is not `complete`.

        Raises:
            RankFailedError: always, on every rank.
        """
        self._collectives.decline(self._device, self._next_slot())

    def drain(self) -> None:
        """Collective. Called instead of the rest of a failed backward pass; the other ranks' gradients become NaN."""
        while self._to_come:
            shape, dtype = self._to_come[-1]
            self.sum_gradients(torch.full(shape, math.nan, dtype=dtype, device=self._device))

    def forward_rows(self, x: Tensor, slot: str) -> tuple[Tensor, int]:
        """The rows of all ranks, and the index at which this rank's begin."""
        gathered, sizes = self._collectives.gather_rows(x, slot)
        self._to_come.append((gathered.shape, gathered.dtype))
        return gathered, sum(sizes[: self._collectives.rank])

    def sum_gradients(self, gradient: Tensor) -> Tensor:
        """Sum the gradient of the last gather that is still open over ranks, in place."""
        self._to_come.pop()
        return self._collectives.all_reduce_sum(gradient)

    def _next_slot(self) -> str:
        # The calls' sizes are similar in every step of a kind, so a call's position identifies it.
        slot, self._calls = f"model {self._kind} {self._calls}", self._calls + 1
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
