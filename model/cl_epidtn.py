"""CL-EPIDTN: two towers with augmented vectors, trained by a sampled softmax, mimic and contrastive losses.

Shape letters: U keys of a step, N packed rows, L tokens, E events and C candidates of this rank, M candidates
of all ranks, S distinct users of this rank, T anchors of all ranks, A augmented width, D columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import augmentation
from model.augmentation import RandomKey
from model.config import ModelConfig
from model.contrastive import ContrastiveLosses
from model.features import ItemInputs, QueryInputs
from model.losses import in_batch_softmax, mimic
from model.towers import ItemTower, UserTower, rows_of

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
    """float32, of unit norm with similarity=cosine: what is searched with."""
    augmented_EA: Tensor | None
    state_NLD: Tensor
    """float32, states of the packed rows."""


@dataclass(frozen=True)
class ItemEncoding:
    """What the item tower says of C items."""

    vectors_CD: Tensor
    """float32, of unit norm with similarity=cosine: what is indexed."""
    augmented_CA: Tensor | None


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


class CLEPIDTN(nn.Module):
    """The model on plain tensors. The rows come from the caller, and their gradient goes back to it.

    Args:
        config: sizes and switches.
        attribute_count: configured user attributes (without user id and activity).
    """

    def __init__(self, config: ModelConfig, attribute_count: int) -> None:
        super().__init__()
        self.config = config
        self.user_tower = UserTower(config, attribute_count)
        self.item_tower = ItemTower(config)
        if config.augmented_vectors:
            # G_u and G_i of Eqs. 4 and 5: training only, never exported.
            self.mimic_user_head = nn.Linear(config.augmented_dim, config.dim)
            self.mimic_item_head = nn.Linear(config.augmented_dim, config.dim)
        self.contrastive = ContrastiveLosses(config)
        self.apply(self._initialise)

    def encode_queries(
        self, rows_UD: Tensor, queries: QueryInputs, hidden_NL: Tensor | None = None
    ) -> QueryEncoding:
        """The query vector of each event as of just before it.

        Args:
            rows_UD: float32 (1 + U, D), row 0 zero.
            queries: packed sequences and events.
            hidden_NL: bool, tokens to replace by MASK (training).
        """
        tower = self.user_tower
        attribute_ED, augmented = tower.attributes(tower.attributes.embed(rows_UD, queries))
        item_ID = tower.history.item_vectors(rows_UD, queries)
        state_NLD = tower.history.states(item_ID, queries.token_NL, hidden_NL)
        last_ED, mean_ED = tower.history.read(state_NLD, queries.sequence_E, queries.position_E)
        source_ERD = rows_of(rows_UD, queries.source_row_ER)
        vectors_ED = tower.combine(attribute_ED, mean_ED, last_ED, source_ERD)
        return QueryEncoding(self._scaled(vectors_ED), augmented, state_NLD)

    def encode_items(self, rows_UD: Tensor, items: ItemInputs) -> ItemEncoding:
        """The vector of each item.

        Args:
            rows_UD: float32 (1 + U, D), row 0 zero.
            items: ids and categories as rows.
        """
        vectors_CD, augmented = self.item_tower(*self.item_tower.embed(rows_UD, items))
        return ItemEncoding(self._scaled(vectors_CD), augmented)

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
            seed, step: key of the random views; the same on every rank.
        Raises:
            ValueError: the gathered candidates are not those of `targets`.
        """
        key = RandomKey(seed, step)
        query = self.encode_queries(rows_UD, queries, self._input_mask(queries, key))
        item = self.encode_items(rows_UD, items)
        views = self.contrastive.views(self.user_tower, self.item_tower, rows_UD, queries, items, key)
        item_MD, augmented_MA = self._gather_items(item, gather)
        if item_MD.shape[0] != targets.log_q_M.shape[0]:
            raise ValueError(
                f"the ranks encoded {item_MD.shape[0]} candidates, the step has {targets.log_q_M.shape[0]}"
            )
        main = in_batch_softmax(
            query.vectors_ED @ item_MD.T / self.config.temperature,
            targets.log_q_M * self.config.logq_strength,
            targets.target_E,
            targets.drop_EM,
            queries.weight_E,
            targets.global_events,
        )
        mimic_user, mimic_item = self._mimic(query, item_MD, augmented_MA, queries, targets)
        sequence, attribute, items_loss = self.contrastive.losses(views, gather, zero=rows_UD.new_zeros(()))
        # The zero row ties a rank without events to the graph.
        total = main + mimic_user + mimic_item + sequence + attribute + items_loss + rows_UD[0].sum() * 0.0
        return LossTerms(total, main, mimic_user, mimic_item, sequence, attribute, items_loss)

    def _gather_items(self, item: ItemEncoding, gather: Gather) -> tuple[Tensor, Tensor | None]:
        """Vectors and augmented vectors of the candidates of all ranks, in one message."""
        if item.augmented_CA is None:
            return gather(item.vectors_CD), None
        gathered = gather(torch.cat([item.vectors_CD, item.augmented_CA], dim=1))
        return gathered[:, : self.config.dim], gathered[:, self.config.dim :]

    def _input_mask(self, queries: QueryInputs, key: RandomKey) -> Tensor | None:
        """Tokens of the main loss's input to hide, bool (N, L), in training."""
        ratio = self.config.input_mask_ratio
        if not self.training or ratio == 0.0:
            return None
        at_L = torch.arange(queries.token_NL.shape[1], device=queries.token_NL.device)
        position_NL = queries.first_position_N.unsqueeze(1) + at_L
        uniform_NL = key.uniform(augmentation.INPUT_MASK, queries.user_N.unsqueeze(1), position_NL)
        return uniform_NL < ratio

    def _mimic(
        self,
        query: QueryEncoding,
        item_MD: Tensor,
        augmented_MA: Tensor | None,
        queries: QueryInputs,
        targets: Targets,
    ) -> tuple[Tensor, Tensor]:
        """Weighted L_mu and L_mi (Eqs. 4 and 5)."""
        zero = item_MD.new_zeros(())
        if query.augmented_EA is None or augmented_MA is None:
            return zero, zero
        weight, count = queries.weight_E, targets.global_events
        target_ED = item_MD.detach()[targets.target_E]
        user = mimic(self.mimic_user_head(query.augmented_EA), target_ED, weight, count)
        head_ED = self.mimic_item_head(augmented_MA[targets.target_E])
        other = mimic(head_ED, query.vectors_ED, weight, count)
        return user * self.config.mimic_user_weight, other * self.config.mimic_item_weight

    def _scaled(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=1) if self.config.similarity == "cosine" else vectors

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.init_std)
            nn.init.zeros_(module.bias)
