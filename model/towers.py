"""The two towers and the personalised augmented vectors, on rows that somebody else looked up.

Shape letters: U keys of a step (row 0 of rows_UD is zero), N packed rows, L tokens, I distinct items of the
sequences, K categories, E events, F user attributes (id and activity included), C items, A augmented width,
R source items, D columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.features import ItemInputs, QueryInputs
from model.transformer import SequenceEncoder, last_and_mean


def two_layers(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    """Linear, ReLU, dropout, linear: the paper's "layer of MLP"."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, outputs)
    )


def rows_of(rows_UD: Tensor, index: Tensor) -> Tensor:
    """Rows by index, float32 (..., D); the padding row gets no gradient."""
    return F.embedding(index, rows_UD, padding_idx=0)


def category_sum(rows_UD: Tensor, category_row_CK: Tensor) -> Tensor:
    """The sum of an item's category rows, float32 (C, D); zero without categories."""
    if category_row_CK.shape[0] == 0:
        return rows_UD.new_zeros(0, rows_UD.shape[1])
    return F.embedding_bag(category_row_CK, rows_UD, mode="sum", padding_idx=0)


class ItemTower(nn.Module):
    """p_i = MLP(e_id ⊕ e_cat ⊕ a_i) + e_id + e_cat (Eqs. 7, 10, 11 and a residual path)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, augmented = config.dim, config.augmented_dim if config.augmented_vectors else 0
        self.augment = (
            two_layers(2 * dim, dim, augmented, config.dropout) if config.augmented_vectors else None
        )
        self.combine = two_layers(2 * dim + augmented, 2 * dim, dim, config.dropout)

    def embed(self, rows_UD: Tensor, items: ItemInputs) -> tuple[Tensor, Tensor]:
        """e_id and e_cat, float32 (C, D) each."""
        return rows_of(rows_UD, items.item_row_C), category_sum(rows_UD, items.category_row_CK)

    def forward(self, id_CD: Tensor, category_CD: Tensor) -> tuple[Tensor, Tensor | None]:
        """p_i, float32 (C, D), and a_i, float32 (C, A); None without augmented vectors."""
        fields = torch.cat([id_CD, category_CD], dim=1)
        # Detached: neither the mimic loss nor the main one reaches the tables through a_i (MODEL.md 4).
        augmented = self.augment(fields.detach()) if self.augment is not None else None
        inputs = fields if augmented is None else torch.cat([fields, augmented], dim=1)
        return self.combine(inputs) + id_CD + category_CD, augmented


class AttributeTower(nn.Module):
    """MLP_user(z_u) of Eq. 12 with z_u = e_u ⊕ a_u (Eqs. 6, 8)."""

    def __init__(self, config: ModelConfig, attribute_count: int) -> None:
        super().__init__()
        dim, augmented = config.dim, config.augmented_dim if config.augmented_vectors else 0
        self.with_user_id = config.user_id_embedding
        self.attribute_count = attribute_count
        width = (attribute_count + 1 + int(self.with_user_id)) * dim
        self.augment = two_layers(width, dim, augmented, config.dropout) if config.augmented_vectors else None
        self.combine = two_layers(width + augmented, 2 * dim, dim, config.dropout)

    def embed(self, rows_UD: Tensor, queries: QueryInputs, events: Tensor | None = None) -> Tensor:
        """e_u before concatenation, float32 (E, F, D): [user id,] activity, then the configured attributes.

        `events` (int64) picks some of the events; all by default.
        """
        columns = [queries.user_row_E.unsqueeze(1)] if self.with_user_id else []
        columns.append(queries.activity_row_E.unsqueeze(1))
        # A batch without rows does not know how many attributes there are: the shape comes from here.
        columns.append(
            queries.attribute_row_EF.reshape(queries.activity_row_E.shape[0], self.attribute_count)
        )
        field_row_EF = torch.cat(columns, dim=1)
        return rows_of(rows_UD, field_row_EF if events is None else field_row_EF[events])

    def forward(self, fields_EFD: Tensor) -> tuple[Tensor, Tensor | None]:
        """MLP_user(z_u), float32 (E, D), and a_u, float32 (E, A); None without augmented vectors."""
        joined = fields_EFD.flatten(1)
        augmented = self.augment(joined.detach()) if self.augment is not None else None
        inputs = joined if augmented is None else torch.cat([joined, augmented], dim=1)
        return self.combine(inputs), augmented


class HistoryTower(nn.Module):
    """The sequence part of Eq. 12: last state and mean of the states before each event."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.window = config.history_length
        self.mask_D = nn.Parameter(torch.zeros(config.dim))
        self.encoder = SequenceEncoder(config) if config.transformer else None

    def item_vectors(self, rows_UD: Tensor, queries: QueryInputs) -> Tensor:
        """e_id + e_cat of the distinct items, float32 (I, D); entry 0 is zero."""
        return rows_of(rows_UD, queries.item_row_I) + category_sum(rows_UD, queries.category_row_IK)

    def states(self, item_ID: Tensor, token_NL: Tensor, hidden_NL: Tensor | None) -> Tensor:
        """Encoded tokens, float32 (N, L, D); the hidden ones enter as the learned MASK vector."""
        token_NLD = F.embedding(token_NL, item_ID, padding_idx=0)
        if hidden_NL is not None:
            token_NLD = torch.where(hidden_NL.unsqueeze(2), self.mask_D, token_NLD)
        if self.encoder is None or token_NLD.shape[0] == 0:
            return token_NLD
        encoded: Tensor = self.encoder(token_NLD)
        return encoded

    def read(self, state_NLD: Tensor, sequence_E: Tensor, position_E: Tensor) -> tuple[Tensor, Tensor]:
        """Last state and mean over the window before each position, float32 (E, D) each."""
        if position_E.shape[0] == 0:
            empty = state_NLD.new_zeros(0, state_NLD.shape[2])
            return empty, empty
        return last_and_mean(state_NLD, sequence_E, position_E, self.window)


class UserTower(nn.Module):
    """p_u = W_out[MLP_user(z_u) ⊕ mean ⊕ last] + w last + Σ_r w_r source_r (Eq. 12 and skips).

    source_r is the source embedding of the r-th last item; all w are learned.
    """

    def __init__(self, config: ModelConfig, attribute_count: int) -> None:
        super().__init__()
        self.attributes = AttributeTower(config, attribute_count)
        self.history = HistoryTower(config)
        self.project = nn.Linear(3 * config.dim, config.dim)
        self.skip = nn.Parameter(torch.tensor(config.state_skip)) if config.state_skip > 0 else None
        self.source_dropout = nn.Dropout(config.dropout)
        weights = [config.source_gain * config.source_decay**r for r in range(config.source_items)]
        self.source_weight_R = nn.Parameter(torch.tensor(weights, dtype=torch.float32))

    def combine(self, attribute_ED: Tensor, mean_ED: Tensor, last_ED: Tensor, source_ERD: Tensor) -> Tensor:
        """p_u, float32 (E, D)."""
        out: Tensor = self.project(torch.cat([attribute_ED, mean_ED, last_ED], dim=1))
        if self.skip is not None:
            out = out + self.skip * last_ED
        source_ED = (source_ERD * self.source_weight_R.unsqueeze(1)).sum(1)
        out = out + self.source_dropout(source_ED)
        return out
