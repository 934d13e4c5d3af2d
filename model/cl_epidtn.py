"""CL-EPIDTN: two towers with augmented vectors, trained by a sampled softmax, mimic and contrastive losses.

Shape letters: U keys of a step, E events and C candidates of this rank, M candidates of all ranks, A augmented
width, D columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.augmentation import RandomKey
from model.config import ModelConfig
from model.contrastive import ContrastiveLosses
from model.ensemble import with_members
from model.features import ItemInputs, QueryInputs
from model.losses import mimic
from model.towers import ItemTower, UserTower
from model.two_tower import Gather, ItemEncoding, LossTerms, QueryEncoding, Targets, TwoTower, no_gather


class CLEPIDTN(TwoTower):
    """The paper's model and its ablations, which are settings of it.

    Args:
        config: sizes and switches.
        attribute_count: configured user attributes (without user id and activity).
    """

    def __init__(self, config: ModelConfig, attribute_count: int) -> None:
        super().__init__(config)
        self.user_tower = UserTower(config, attribute_count)
        self.item_tower = ItemTower(config)
        if config.augmented_vectors:
            # G_u and G_i of Eqs. 4 and 5: training only, never exported.
            self.mimic_user_head = nn.Linear(config.augmented_dim, config.dim)
            self.mimic_item_head = nn.Linear(config.augmented_dim, config.dim)
        self.contrastive = ContrastiveLosses(config)
        self.initialise()

    def encode_queries(
        self, rows_UD: Tensor, queries: QueryInputs, hidden_RL: Tensor | None = None
    ) -> QueryEncoding:
        """See TwoTower; of unit norm with similarity=cosine."""
        tower = self.user_tower
        attribute_ED, augmented = tower.attributes(tower.attributes.embed(rows_UD, queries))
        item_ID = tower.history.item_vectors(rows_UD, queries)
        state_RLD = tower.history.states(item_ID, queries.history, hidden_RL)
        last_ED, mean_ED = tower.history.read(
            state_RLD, queries.history, queries.sequence_E, queries.position_E
        )
        source_ED = tower.sources(rows_UD, queries) if tower.sources is not None else None
        vectors_ED = tower.combine(attribute_ED, mean_ED, last_ED, source_ED)
        return QueryEncoding(self._scaled(vectors_ED), augmented, state_RLD)

    def encode_items(self, rows_UD: Tensor, items: ItemInputs) -> ItemEncoding:
        """See TwoTower; of unit norm with similarity=cosine."""
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
        """See TwoTower: the main loss, both mimic losses and the three contrastive ones (Eq. 20)."""
        key = RandomKey(seed, step)
        query = self.encode_queries(rows_UD, queries, self._input_mask(queries, key))
        item = self.encode_items(rows_UD, items)
        views = self.contrastive.views(self.user_tower, self.item_tower, rows_UD, queries, items, key)
        item_MD, augmented_MA = self._gather_items(item, gather)
        self._require_candidates(item_MD, targets)
        main = self._main(self.scores(query.vectors_ED, item_MD), queries, targets)
        mimics = self._mimic(query, item_MD, augmented_MA, queries, targets)
        contrastive = self.contrastive.losses(views, gather, zero=rows_UD.new_zeros(()))
        return self._terms(rows_UD, main, *mimics, *contrastive)

    def _gather_items(self, item: ItemEncoding, gather: Gather) -> tuple[Tensor, Tensor | None]:
        """Vectors and augmented vectors of the candidates of all ranks, in one message."""
        if item.augmented_CA is None:
            return gather(item.vectors_CD), None
        gathered = gather(torch.cat([item.vectors_CD, item.augmented_CA], dim=1))
        return gathered[:, : self.config.dim], gathered[:, self.config.dim :]

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


def cl_epidtn(config: ModelConfig, attribute_count: int) -> TwoTower:
    """What is trained on a stream and served: CL-EPIDTN, or as many side by side as `config.members` says.

    Args:
        config: sizes and switches.
        attribute_count: configured user attributes (without user id and activity).
    """
    return with_members(config, lambda own: CLEPIDTN(own, attribute_count))
