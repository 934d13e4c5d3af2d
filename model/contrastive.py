"""The contrastive part of CL-EPIDTN: two random views of each user's sequence, attributes and of each item.

Shape letters: N sequences in R rows of L tokens, S distinct users, C items, T anchors of all ranks, F attributes,
D columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.augmentation import (
    ATTRIBUTE_VIEW,
    ITEM_VIEW,
    SEQUENCE_VIEW,
    RandomKey,
    kept_fields,
    kept_item_fields,
    masked_tokens,
)
from model.config import ModelConfig
from model.features import ItemInputs, QueryInputs
from model.losses import info_nce
from model.towers import AttributeTower, HistoryTower, ItemTower, UserTower
from model.two_tower import Gather, token_uniform


@dataclass(frozen=True)
class Views:
    """Two views of S users or items of this rank."""

    first_SD: Tensor
    second_SD: Tensor
    id_S: Tensor
    """int64, distinct over all ranks."""
    group_S: Tensor
    """int64; equal groups are no negatives of each other."""
    negative_SD: Tensor | None = None
    """float32, what the user did not like, encoded (h⁻ of Eq. 21)."""
    has_negative_S: Tensor | None = None


class ContrastiveLosses:
    """Eqs. 20–24: the weighted sum's three terms, each with cross-rank negatives."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config

    def views(
        self,
        user_tower: UserTower,
        item_tower: ItemTower,
        rows_UD: Tensor,
        queries: QueryInputs,
        items: ItemInputs,
        key: RandomKey,
    ) -> list[Views | None]:
        """Both views of this rank's users and items: of sequences, attributes, items; None where a weight is 0.

        All local work, apart from what is gathered: ranks that wait for each other once wait less than ranks
        that wait before every term.
        """
        config = self._config
        alpha = config.contrastive_weight
        return [
            self._sequence(user_tower.history, rows_UD, queries, key)
            if alpha * config.contrastive_sequence_weight > 0
            else None,
            self._attribute(user_tower.attributes, rows_UD, queries, key)
            if alpha * config.contrastive_attribute_weight > 0
            else None,
            self._item(item_tower, rows_UD, items, key)
            if alpha * config.contrastive_item_weight > 0
            else None,
        ]

    def losses(
        self, views: list[Views | None], gather: Gather, zero: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted sequence, attribute and item losses; a term that is None is `zero` and gathers nothing."""
        config = self._config
        weights = (
            config.contrastive_sequence_weight,
            config.contrastive_attribute_weight,
            config.contrastive_item_weight,
        )
        terms = [
            zero if view is None else config.contrastive_weight * weight * self._agreement(view, gather)
            for weight, view in zip(weights, views, strict=True)
        ]
        return terms[0], terms[1], terms[2]

    def _sequence(self, tower: HistoryTower, rows_UD: Tensor, queries: QueryInputs, key: RandomKey) -> Views:
        """Eqs. 21, 22 on [mean ⊕ last] of each user's last sequence; explicit negatives give h⁻."""
        anchor_S, rows = queries.anchor_sequence_S, queries.history
        user_S, length_S = queries.user_N[anchor_S], rows.length_N[anchor_S]
        item_ID = tower.item_vectors(rows_UD, queries)
        views = []
        for view in (0, 1):
            hidden_RL = masked_tokens(
                token_uniform(key, SEQUENCE_VIEW + view, queries),
                rows.sequence_RL,
                rows.length_N.shape[0],
                self._config.sequence_mask_ratio,
            )
            last, mean = tower.read(tower.states(item_ID, rows, hidden_RL), rows, anchor_S, length_S)
            views.append(torch.cat([mean, last], dim=1))
        negatives = queries.negatives
        if negatives.token_RL.shape[0] == 0:
            return Views(views[0], views[1], user_S, user_S)
        count_S = negatives.length_N[anchor_S]
        last, mean = tower.read(tower.states(item_ID, negatives, None), negatives, anchor_S, count_S)
        return Views(views[0], views[1], user_S, user_S, torch.cat([mean, last], dim=1), count_S > 0)

    def _attribute(
        self, tower: AttributeTower, rows_UD: Tensor, queries: QueryInputs, key: RandomKey
    ) -> Views:
        """Eq. 23 on MLP_user(z_u) of each user as of its last event."""
        fields_SFD = tower.embed(rows_UD, queries, queries.anchor_event_S)
        user_S = queries.user_E[queries.anchor_event_S]
        views = [self._user_view(tower, fields_SFD, user_S, key, ATTRIBUTE_VIEW + view) for view in (0, 1)]
        group_S = queries.group_E[queries.anchor_event_S]
        return Views(views[0], views[1], user_S, group_S)

    def _user_view(
        self, tower: AttributeTower, fields_SFD: Tensor, user_S: Tensor, key: RandomKey, salt: int
    ) -> Tensor:
        count = fields_SFD.shape[1]
        uniform_SF = key.uniform(salt, user_S.unsqueeze(1), torch.arange(count, device=user_S.device))
        kept_SF = kept_fields(uniform_SF, self._config.attribute_mask_ratio)
        masked_SFD = fields_SFD * kept_SF.unsqueeze(2)
        dropped = key.dropout(salt, user_S, masked_SFD.flatten(1), self._config.view_dropout)
        out: Tensor = tower(dropped.view_as(fields_SFD))[0]
        return out

    def _item(self, tower: ItemTower, rows_UD: Tensor, items: ItemInputs, key: RandomKey) -> Views:
        """Eq. 24 on p_i of each distinct item."""
        chosen = items.targets_only() if self._config.contrastive_items == "targets" else items
        id_CD, category_CD = tower.embed(rows_UD, chosen)
        views = [
            self._item_view(tower, id_CD, category_CD, chosen.id_C, key, ITEM_VIEW + view) for view in (0, 1)
        ]
        return Views(views[0], views[1], chosen.id_C, chosen.id_C)

    def _item_view(
        self, tower: ItemTower, id_CD: Tensor, category_CD: Tensor, item_C: Tensor, key: RandomKey, salt: int
    ) -> Tensor:
        uniform_C = key.uniform(salt, item_C, torch.zeros_like(item_C))
        keep_id_C, keep_category_C = kept_item_fields(uniform_C, self._config.item_mask_ratio)
        fields = torch.cat(
            [id_CD * keep_id_C.unsqueeze(1), category_CD * keep_category_C.unsqueeze(1)], dim=1
        )
        dropped = key.dropout(salt, item_C, fields, self._config.view_dropout)
        out: Tensor = tower(*dropped.chunk(2, dim=1))[0]
        return out

    def _agreement(self, views: Views, gather: Gather) -> Tensor:
        """InfoNCE of local anchors against the second views of all ranks; equal groups are no negatives."""
        # One message for both: the two int64 travel as the bits of four float32, which a copy does not change.
        bits_S4 = torch.stack([views.id_S, views.group_S], dim=1).view(torch.float32)
        gathered = gather(torch.cat([views.second_SD, bits_S4], dim=1))
        second_TD = gathered[:, :-4]
        id_T, group_T = gathered[:, -4:].detach().contiguous().view(torch.int64).unbind(1)
        if views.first_SD.shape[0] == 0:
            return views.first_SD.sum() * 0.0
        positive_S = (views.id_S.unsqueeze(1) == id_T).to(torch.uint8).argmax(dim=1)
        same_ST = views.group_S.unsqueeze(1) == group_T
        return info_nce(
            views.first_SD,
            second_TD,
            positive_S,
            same_ST,
            self._config.contrastive_temperature,
            views.negative_SD,
            views.has_negative_S,
        )
