"""AdamW of the towers: torch's functional step without torch's optimizer class.

`torch.optim.Optimizer` imports torch's compiler only to exclude itself from it: 1.2 s of CPU in every process, most of
the time in which a worker builds its model, and a resuming run waits for it. Nothing here is compiled. So this class
holds the state and calls torch's functional form, with bit-identical results
(https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html): fused on a CPU, where a call for each parameter
and operation would take longer than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


class TowerOptimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019).

    Args:
        parameters: of the towers.
        weight_decay: share of each parameter with a gradient that is subtracted per step, times the learning rate.

    Attributes:
        state: by parameter, once it has had a gradient: `step` (float32, a scalar on the CPU), `exp_avg` and
            `exp_avg_sq` (like the parameter), as torch names them.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], weight_decay: float = 0.0) -> None:
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self._parameters = list(parameters)
        self._weight_decay = weight_decay

    def clear_gradients(self) -> None:
        """Drop all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def flat_gradients(self, more: Tensor) -> Tensor:
        """All gradients one after another, zeros where there is none, then `more`: float32 (P + n,).

        They can be summed over ranks in one message and scaled in one operation: from then on, each parameter's
        gradient is its part of this tensor.

        Args:
            more: float32 (n,), for the same message.
        """
        parts = [p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1) for p in self._parameters]
        flat = torch.cat([*parts, more])
        start = 0
        for parameter in self._parameters:
            parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        return flat

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update every parameter that has a gradient."""
        learning = [p for p in self._parameters if p.grad is not None]
        for parameter in learning:
            if parameter not in self.state:
                self.state[parameter] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in learning]
        adamw(
            list(learning),
            [parameter.grad for parameter in learning if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=_BETA1,
            beta2=_BETA2,
            lr=learning_rate,
            weight_decay=self._weight_decay,
            eps=_EPS,
            maximize=False,
            fused=True if all(p.device.type == "cpu" for p in learning) else None,
        )
