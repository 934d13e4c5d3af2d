"""What every trained system here is: two towers on plain tensors, compared with each other.

Shape letters: U keys of a step, E events and C candidates of this rank, M candidates of all ranks, Q queries, I items,
A augmented width, D columns.

The rows come from the caller, and their gradient goes back to it. Ranks enter through `Gather` alone, so one module
runs in a test, in an evaluation and on a cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.features import ItemInputs, QueryInputs
from model.losses import in_batch_softmax, pointwise

Gather = Callable[[Tensor], Tensor]
"""Concatenates a tensor over the ranks in rank order; differentiable for floats. Identity on one process."""


@dataclass(frozen=True)
class Targets:
    """What the loss needs to know of the global step."""

    target_E: Tensor
    """int64, place of each event's item among the gathered candidates."""
    log_q_M: Tensor
    """float32, natural log of each candidate's chance to be one."""
    drop_EM: Tensor
    """bool, negatives that the event's user is known to like; never the event's own target."""
    global_events: float
    """Sum of the events' weights over all ranks."""


@dataclass(frozen=True)
class QueryEncoding:
    """What the user tower says of E events."""

    vectors_ED: Tensor
    """float32: what is searched with."""
    augmented_EA: Tensor | None = None


@dataclass(frozen=True)
class ItemEncoding:
    """What the item tower says of C items."""

    vectors_CD: Tensor
    """float32: what is indexed."""
    augmented_CA: Tensor | None = None


@dataclass(frozen=True)
class LossTerms:
    """This rank's share of the global loss and of its weighted terms: they add up, and over ranks too."""

    total: Tensor
    """Scalar with a graph, also on a rank without events."""
    main: Tensor
    mimic_user: Tensor
    mimic_item: Tensor
    contrastive_sequence: Tensor
    contrastive_attribute: Tensor
    contrastive_item: Tensor

    def detached(self) -> dict[str, Tensor]:
        """Every term by name, without a graph, for the screen."""
        return {name: value.detach() for name, value in vars(self).items()}


@dataclass(frozen=True)
class StepPlan:
    """What a model prepares on the host before a step's inputs go to the device; nothing by default."""


def no_gather(x: Tensor) -> Tensor:
    """One process: what it has is all there is."""
    return x


class TwoTower(nn.Module):
    """A query tower and an item tower and the loss that trains them; subclasses say what the towers are."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def plan(self, queries: QueryInputs, items: ItemInputs, *, seed: int, step: int) -> StepPlan:
        """What `forward` needs of a step beside its inputs, which are on the CPU here, and so is the plan.

        Args:
            queries: this rank's events.
            items: the candidates that this rank owns.
            seed, step: key of everything random but dropout; the same on every rank.
        """
        return StepPlan()

    def encode_queries(self, rows_UD: Tensor, queries: QueryInputs) -> QueryEncoding:
        """The query vector of each event as of just before it.

        Args:
            rows_UD: float32 (1 + U, D), row 0 zero.
            queries: sequences and events.
        """
        raise NotImplementedError

    def encode_items(self, rows_UD: Tensor, items: ItemInputs) -> ItemEncoding:
        """The vector of each item.

        Args:
            rows_UD: float32 (1 + U, D), row 0 zero.
            items: ids and categories as rows.
        """
        raise NotImplementedError

    def scores(self, query_QD: Tensor, item_ID: Tensor) -> Tensor:
        """How well items fit queries, float32 (Q, I): the inner product."""
        return query_QD @ item_ID.T

    def forward(
        self,
        rows_UD: Tensor,
        queries: QueryInputs,
        items: ItemInputs,
        targets: Targets,
        gather: Gather = no_gather,
        *,
        seed: int = 0,
        step: int = 0,
        plan: StepPlan | None = None,
    ) -> LossTerms:
        """This rank's share of the loss of a global step. Collective: every rank must call it.

        Args:
            rows_UD: float32 (1 + U, D), row 0 zero.
            queries: this rank's events.
            items: the candidates that this rank owns; each candidate is on exactly one rank.
            targets: of this rank's events among all candidates.
            gather: concatenation over ranks.
            seed, step: key of everything random but dropout; the same on every rank.
            plan: of these inputs, seed and step; made here if the caller has none, on the CPU only.
        Raises:
            ValueError: the gathered candidates are not those of `targets`.
        """
        query = self.encode_queries(rows_UD, queries)
        item_MD = gather(self.encode_items(rows_UD, items).vectors_CD)
        self._require_candidates(item_MD, targets)
        main = self._main(self.scores(query.vectors_ED, item_MD), queries, targets)
        return self._terms(rows_UD, main)

    def _main(self, scores_EM: Tensor, queries: QueryInputs, targets: Targets) -> Tensor:
        """The sampled softmax with logQ correction (Eq. 25), or labels for single pairs (Eq. 14)."""
        logits_EM = scores_EM if self.config.temperature == 1.0 else scores_EM / self.config.temperature
        if self.config.loss == "pointwise":
            return pointwise(
                logits_EM, targets.target_E, targets.drop_EM, queries.weight_E, targets.global_events
            )
        return in_batch_softmax(
            logits_EM,
            weighted(targets.log_q_M, self.config.logq_strength),
            targets.target_E,
            targets.drop_EM,
            queries.weight_E,
            targets.global_events,
        )

    def _terms(self, rows_UD: Tensor, main: Tensor, *others: Tensor) -> LossTerms:
        """All terms and their sum; the zero row ties a rank without events to the graph."""
        rest = others or (main.new_zeros(()),) * 5
        total = torch.stack([main, *rest]).sum()
        if not total.requires_grad:
            total = total + rows_UD[0].sum() * 0.0
        return LossTerms(total, main, *rest)

    def _require_candidates(self, item_MD: Tensor, targets: Targets) -> None:
        if item_MD.shape[0] != targets.log_q_M.shape[0]:
            raise ValueError(
                f"the ranks encoded {item_MD.shape[0]} candidates, the step has {targets.log_q_M.shape[0]}"
            )

    def initialise(self) -> None:
        """Linear layers: normal(0, init_std), no bias."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=self.config.init_std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def weighted(x: Tensor, weight: float) -> Tensor:
    """x · weight, without an operation for a weight of 1."""
    return x if weight == 1.0 else x * weight
