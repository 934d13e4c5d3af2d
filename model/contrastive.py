"""The contrastive part of CL-EPIDTN: two random views of each user's sequence, attributes and of each item.

Random numbers are drawn on the host. The towers encode the views together with the main loss's input, and
`ContrastiveLosses` compares them.

Shape letters: N sequences in R rows of L tokens, S distinct users, T target items of this rank, F attributes, V fields
of all views, P anchors of all ranks, D columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.augmentation import (
    ATTRIBUTE_VIEW,
    INPUT_MASK,
    ITEM_VIEW,
    SEQUENCE_VIEW,
    RandomKey,
    kept_fields,
    kept_item_fields,
    masked_tokens,
)
from model.config import ModelConfig
from model.features import QueryInputs
from model.losses import info_nce
from model.two_tower import Gather

VIEWS = (0, 1)


@dataclass(frozen=True)
class Views:
    """Two views of S users or items of this rank."""

    first_SD: Tensor
    second_SD: Tensor
    id_S: Tensor
    """int64, distinct over all ranks."""
    group_S: Tensor | None = None
    """int64; members of one group are not negatives of each other. None: all groups differ."""
    negative_SD: Tensor | None = None
    """float32, the encoded items that the user disliked (h⁻ of Eq. 21)."""
    has_negative_S: Tensor | None = None


def input_mask(key: RandomKey, queries: QueryInputs, ratio: float) -> Tensor:
    """Tokens of the main loss's input to hide, bool (R, L)."""
    # Padding gets a random number too, but has no token to hide.
    return (_token_uniform(key, INPUT_MASK, queries) < ratio) & (queries.history.sequence_RL >= 0)


def sequence_masks(key: RandomKey, queries: QueryInputs, ratio: float) -> list[Tensor]:
    """Tokens that each view of the sequences hides, bool (R, L) each (Eq. 17)."""
    rows = queries.history
    return [
        masked_tokens(
            _token_uniform(key, SEQUENCE_VIEW + view, queries),
            rows.sequence_RL,
            rows.length_N.shape[0],
            ratio,
        )
        for view in VIEWS
    ]


def attribute_draws(
    key: RandomKey, user_S: Tensor, fields: int, config: ModelConfig
) -> tuple[list[Tensor], list[Tensor]]:
    """For each view of S users: start of each field's dropout numbers, and whether the field is kept, flat (S F)."""
    starts, kept = [], []
    for view in VIEWS:
        salt = ATTRIBUTE_VIEW + view
        uniform_SF = key.uniform(salt, user_S.unsqueeze(1), torch.arange(fields))
        kept_SF = kept_fields(uniform_SF, config.attribute_mask_ratio)
        starts.append(key.dropout_starts(salt, user_S, fields, config.dim).flatten())
        kept.append(kept_SF.flatten())
    return starts, kept


def item_draws(key: RandomKey, item_T: Tensor, config: ModelConfig) -> tuple[list[Tensor], list[Tensor]]:
    """For each view of T items: start of the dropout numbers of id and categories, and which are kept, flat (T 2)."""
    starts, kept = [], []
    for view in VIEWS:
        salt = ITEM_VIEW + view
        uniform_T = key.uniform(salt, item_T, torch.zeros_like(item_T))
        keep_id_T, keep_category_T = kept_item_fields(uniform_T, config.item_mask_ratio)
        starts.append(key.dropout_starts(salt, item_T, 2, config.dim).flatten())
        kept.append(torch.stack([keep_id_T, keep_category_T], dim=1).flatten())
    return starts, kept


def _token_uniform(key: RandomKey, salt: int, queries: QueryInputs) -> Tensor:
    """A random number for each token, float32 (R, L): a function of its user and its position."""
    rows = queries.history
    if queries.user_N.shape[0] == 0:
        return torch.zeros(rows.token_RL.shape)
    sequence_RL = rows.sequence_RL.clamp_min(0)
    return key.uniform(
        salt, queries.user_N[sequence_RL], queries.first_position_N[sequence_RL] + rows.within_RL
    )


class ContrastiveLosses:
    """The three weighted terms of Eq. 20 (Eqs. 21–24), each with negatives from all ranks.

    Args:
        config: weights and temperature.
        step: one in `contrastive_every` takes the losses, for the others too.
    """

    def __init__(self, config: ModelConfig, step: int) -> None:
        self._config = config
        alpha = config.contrastive_weight * config.contrastive_every
        if not config.takes_contrastive(step):
            alpha = 0.0
        self.sequence_weight = alpha * config.contrastive_sequence_weight
        self.attribute_weight = alpha * config.contrastive_attribute_weight
        self.item_weight = alpha * config.contrastive_item_weight

    def losses(
        self, views: Sequence[Views | None], gather: Gather, zero: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted sequence, attribute and item losses; a term that is None is `zero` and gathers nothing."""
        weights = (self.sequence_weight, self.attribute_weight, self.item_weight)
        terms = [
            zero if view is None else self._agreement(view, gather, weight)
            for weight, view in zip(weights, views, strict=True)
        ]
        return terms[0], terms[1], terms[2]

    def _agreement(self, views: Views, gather: Gather, weight: float) -> Tensor:
        """Weighted InfoNCE of local anchors against all ranks' second views; one's own group is not a negative."""
        # One message for everything: an int64 is sent as the bits of two float32, which a copy preserves.
        keys = [views.id_S] if views.group_S is None else [views.id_S, views.group_S]
        bits = [key.view(torch.float32).view(-1, 2) for key in keys]
        gathered = gather(torch.cat([views.second_SD, *bits], dim=1))
        second_PD, bits_P = torch.split(gathered, [views.second_SD.shape[1], 2 * len(keys)], dim=1)
        if views.first_SD.shape[0] == 0:
            return views.first_SD.sum() * 0.0
        keys_P = bits_P.detach().contiguous().view(torch.int64).unbind(1)
        positive_S = (views.id_S.unsqueeze(1) == keys_P[0]).max(dim=1).indices
        same_SP = views.group_S.unsqueeze(1) == keys_P[1] if views.group_S is not None else None
        return info_nce(
            views.first_SD,
            second_PD,
            positive_S,
            same_SP,
            self._config.contrastive_temperature,
            views.negative_SD,
            views.has_negative_S,
            weight,
        )
