"""The two towers and the personalised augmented vectors, on rows that somebody else looked up.

Shape letters: U keys of a step (row 0 of rows_UD is zero), N sequences in R rows of L tokens, I distinct items of
the sequences, K categories, E events, F user attributes (id and activity included), C items, A augmented width,
B source items, D columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.dropout import Dropout
from model.features import ItemInputs, QueryInputs
from model.token_rows import TokenRows
from model.transformer import SequenceEncoder, last_and_mean, last_states

_READS_FIELDS = ("augment.0.weight", "combine.0.weight")


def two_layers(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    """Linear, ReLU, dropout, linear: the paper's "layer of MLP"."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), Dropout(dropout), nn.Linear(hidden, outputs))


def rows_of(rows_UD: Tensor, index: Tensor) -> Tensor:
    """Rows by index, float32 (..., D); the padding row gets no gradient."""
    return F.embedding(index, rows_UD, padding_idx=0)


def category_sum(rows_UD: Tensor, category_row_CK: Tensor) -> Tensor:
    """The sum of an item's category rows, float32 (C, D); zero without categories."""
    if category_row_CK.numel() == 0:
        return rows_UD.new_zeros(category_row_CK.shape[0], rows_UD.shape[1])
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
        self.dim, self.with_user_id = dim, config.user_id_embedding
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

    def first_weights(self) -> dict[str, Tensor]:
        """The weights that read z_u, by name: F·D columns in the order of `embed`, then those of a_u if any."""
        return {name: w for name, w in self.named_parameters() if name in _READS_FIELDS}

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

    def states(self, item_ID: Tensor, rows: TokenRows, hidden_RL: Tensor | None) -> Tensor:
        """Encoded tokens, float32 (R, L, D); the hidden ones enter as the learned MASK vector."""
        token_RLD = F.embedding(rows.token_RL, item_ID, padding_idx=0)
        if hidden_RL is not None:
            token_RLD = torch.where(hidden_RL.unsqueeze(2), self.mask_D, token_RLD)
        if self.encoder is None or token_RLD.shape[0] == 0:
            return token_RLD
        encoded: Tensor = self.encoder(token_RLD, rows)
        return encoded

    def read(
        self, state_RLD: Tensor, rows: TokenRows, sequence_E: Tensor, position_E: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Last state and mean over the window before each position, float32 (E, D) each."""
        if position_E.shape[0] == 0 or state_RLD.shape[0] == 0:
            empty = state_RLD.new_zeros(position_E.shape[0], state_RLD.shape[2])
            return empty, empty
        return last_and_mean(state_RLD, rows, sequence_E, position_E, self.window)


class RecentSources(nn.Module):
    """Σ_b w_b source(b-th last item): what came after an item before, remembered apart from what the item is.

    source(i) is an embedding of its own, plus those of the item's categories with model.source_categories.
    The sum is a causal filter along the sequence: one small matrix product per row instead of B gathers per event.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dropout = Dropout(config.dropout)
        weights = [config.source_gain * config.source_decay**b for b in range(config.source_items)]
        self.weight_B = nn.Parameter(torch.tensor(weights, dtype=torch.float32))

    def forward(self, rows_UD: Tensor, queries: QueryInputs) -> Tensor:
        """float32 (E, D)."""
        rows = queries.history
        if rows.token_RL.shape[0] == 0:
            return rows_UD.new_zeros(queries.position_E.shape[0], rows_UD.shape[1])
        source_ID = rows_of(rows_UD, queries.source_row_I)
        source_ID = source_ID + category_sum(rows_UD, queries.source_category_row_IK)
        token_RLD = F.embedding(rows.token_RL, source_ID, padding_idx=0)
        mixed_RLD = self._filter(rows) @ token_RLD
        out: Tensor = self.dropout(last_states(mixed_RLD, rows, queries.sequence_E, queries.position_E))
        return out

    def _filter(self, rows: TokenRows) -> Tensor:
        """What token i takes of token j: w of their distance, float32 (L, L) or (R, L, L)."""
        at_L = torch.arange(rows.token_RL.shape[1], device=rows.token_RL.device)
        distance_LL = at_L.unsqueeze(1) - at_L.unsqueeze(0)
        outside_LL = (distance_LL < 0) | (distance_LL >= self.weight_B.shape[0])
        weight_LL = self.weight_B[distance_LL.clamp(0, self.weight_B.shape[0] - 1)]
        weight_LL = weight_LL.masked_fill(outside_LL, 0.0)
        return weight_LL.masked_fill(rows.strange_RLL, 0.0) if rows.shared else weight_LL


class UserTower(nn.Module):
    """p_u = W_out[MLP_user(z_u) ⊕ mean ⊕ last] + w last + Σ_b w_b source_b (Eq. 12 and skips); all w are learned."""

    def __init__(self, config: ModelConfig, attribute_count: int) -> None:
        super().__init__()
        self.attributes = AttributeTower(config, attribute_count)
        self.history = HistoryTower(config)
        self.project = nn.Linear(3 * config.dim, config.dim)
        self.skip = nn.Parameter(torch.tensor(config.state_skip)) if config.state_skip > 0 else None
        self.sources = RecentSources(config) if config.source_items > 0 else None

    def combine(
        self, attribute_ED: Tensor, mean_ED: Tensor, last_ED: Tensor, source_ED: Tensor | None
    ) -> Tensor:
        """p_u, float32 (E, D)."""
        out: Tensor = self.project(torch.cat([attribute_ED, mean_ED, last_ED], dim=1))
        if self.skip is not None:
            out = out + self.skip * last_ED
        return out if source_ED is None else out + source_ED
