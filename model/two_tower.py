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

from model.augmentation import INPUT_MASK, RandomKey
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
    state_RLD: Tensor | None = None
    """float32, states of the sequences."""


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


def no_gather(x: Tensor) -> Tensor:
    """One process: what it has is all there is."""
    return x


class TwoTower(nn.Module):
    """A query tower and an item tower and the loss that trains them; subclasses say what the towers are."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def encode_queries(
        self, rows_UD: Tensor, queries: QueryInputs, hidden_RL: Tensor | None = None
    ) -> QueryEncoding:
        """The query vector of each event as of just before it.

        Args:
            rows_UD: float32 (1 + U, D), row 0 zero.
            queries: sequences and events.
            hidden_RL: bool, tokens to replace by MASK (training).
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
    ) -> LossTerms:
        """This rank's share of the loss of a global step. Collective: every rank must call it.

        Args:
            rows_UD: float32 (1 + U, D), row 0 zero.
            queries: this rank's events.
            items: the candidates that this rank owns; each candidate is on exactly one rank.
            targets: of this rank's events among all candidates.
            gather: concatenation over ranks.
            seed, step: key of everything random but dropout; the same on every rank.
        Raises:
            ValueError: the gathered candidates are not those of `targets`.
        """
        query = self.encode_queries(rows_UD, queries, self._input_mask(queries, RandomKey(seed, step)))
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
            targets.log_q_M * self.config.logq_strength,
            targets.target_E,
            targets.drop_EM,
            queries.weight_E,
            targets.global_events,
        )

    def _terms(self, rows_UD: Tensor, main: Tensor, *others: Tensor) -> LossTerms:
        """All terms and their sum; the zero row ties a rank without events to the graph."""
        zero = rows_UD.new_zeros(())
        rest = others or (zero,) * 5
        total = main + sum(rest) + rows_UD[0].sum() * 0.0
        return LossTerms(total, main, *rest)

    def _require_candidates(self, item_MD: Tensor, targets: Targets) -> None:
        if item_MD.shape[0] != targets.log_q_M.shape[0]:
            raise ValueError(
                f"the ranks encoded {item_MD.shape[0]} candidates, the step has {targets.log_q_M.shape[0]}"
            )

    def _input_mask(self, queries: QueryInputs, key: RandomKey) -> Tensor | None:
        """Tokens of the main loss's input to hide, bool (R, L), in training."""
        ratio = self.config.input_mask_ratio
        if not self.training or ratio == 0.0:
            return None
        return token_uniform(key, INPUT_MASK, queries) < ratio

    def initialise(self) -> None:
        """Linear layers: normal(0, init_std), no bias."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=self.config.init_std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def token_uniform(key: RandomKey, salt: int, queries: QueryInputs) -> Tensor:
    """A random number for each token of the sequences, float32 (R, L): a function of its user and its place."""
    rows = queries.history
    if queries.user_N.shape[0] == 0:
        return torch.zeros(rows.token_RL.shape, device=rows.token_RL.device)
    sequence_RL = rows.sequence_RL.clamp_min(0)
    return key.uniform(
        salt, queries.user_N[sequence_RL], queries.first_position_N[sequence_RL] + rows.within_RL
    )
