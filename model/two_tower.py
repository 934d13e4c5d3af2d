"""The base of every trained system: two towers on plain tensors, whose outputs are compared.

Shape letters: U keys of a step, E events and C candidates of this rank, M candidates of all ranks, Q queries, I items,
A augmented width, D columns.

The caller passes the rows and receives their gradient. Ranks communicate only through `Gather`, so the same module runs
in a test, in an evaluation and on a cluster.
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
    """The targets of a global step, as the loss needs them."""

    target_E: Tensor
    """int64, index of each event's item among the gathered candidates."""
    log_q_M: Tensor
    """float32, natural log of each candidate's sampling probability."""
    drop_EM: Tensor
    """bool, negatives that the event's user is known to like; never the event's own target."""
    global_events: float
    """Sum of the events' weights over all ranks."""


@dataclass(frozen=True)
class QueryEncoding:
    """The user tower's output for E events."""

    vectors_ED: Tensor
    """float32, the query vectors."""
    augmented_EA: Tensor | None = None


@dataclass(frozen=True)
class ItemEncoding:
    """The item tower's output for C items."""

    vectors_CD: Tensor
    """float32, the vectors that are indexed."""
    augmented_CA: Tensor | None = None


@dataclass(frozen=True)
class LossTerms:
    """This rank's share of the global loss and of its weighted terms; terms and ranks both add up."""

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
    """Data that a model prepares on the host before a step's inputs go to the device; empty by default."""


def no_gather(x: Tensor) -> Tensor:
    """The gather of a single process: returns its argument."""
    return x


class TwoTower(nn.Module):
    """A query tower, an item tower, and the loss that trains them; subclasses define the towers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def plan(self, queries: QueryInputs, items: ItemInputs, *, seed: int, step: int) -> StepPlan:
        """What `forward` needs besides its inputs. Inputs and plan are both on the CPU.

        Args:
            queries: this rank's events.
            items: the candidates that this rank owns.
            seed, step: key of all random numbers except dropout's; the same on every rank.
        """
        return StepPlan()

    def encode_queries(self, rows_UD: Tensor, queries: QueryInputs) -> QueryEncoding:
        """The query vector of each event, as of just before the event.

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
        """Scores of items for queries, float32 (Q, I): the inner product."""
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
            seed, step: key of all random numbers except dropout's; the same on every rank.
            plan: of these inputs, seed and step; created here if None, which works on the CPU only.
        Raises:
            ValueError: the number of gathered candidates is not that of `targets`.
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
        """All terms and their sum; the zero row connects a rank without events to the graph."""
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
    """x · weight; no operation if the weight is 1."""
    return x if weight == 1.0 else x * weight
