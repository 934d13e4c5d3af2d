"""The two towers and their personalised augmented vectors, on rows that the caller has looked up.

Shape letters: U keys of a step (row 0 of rows_UD is zero), N sequences in R rows of L tokens, I distinct items of
the sequences, K categories, E events, F user attributes (id and activity included), C items, A augmented width,
B source items, Q events that read a sequence, D columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.dropout import Dropout
from model.features import QueryInputs
from model.token_rows import Reads, TokenRows, distances
from model.transformer import SequenceEncoder, last_states, mean_and_last

_READS_FIELDS = ("augment.0.weight", "combine.0.weight")


def two_layers(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    """Linear, ReLU, dropout, linear: the paper's "layer of MLP"."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), Dropout(dropout), nn.Linear(hidden, outputs))


def rows_of(rows_UD: Tensor, index: Tensor) -> Tensor:
    """Rows by index, float32 (..., D); the padding row gets no gradient."""
    return F.embedding(index, rows_UD, padding_idx=0)


def sum_of_rows(rows_UD: Tensor, row_CK: Tensor) -> Tensor:
    """The sum of an item's rows, for example of its categories, float32 (C, D); zero if it has none."""
    if row_CK.numel() == 0:
        return rows_UD.new_zeros(row_CK.shape[0], rows_UD.shape[1])
    return F.embedding_bag(row_CK, rows_UD, mode="sum", padding_idx=0)


class ItemTower(nn.Module):
    """p_i = MLP(e_id ⊕ e_cat ⊕ a_i) + e_id + e_cat (Eqs. 7, 10, 11 and a residual path)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, augmented = config.dim, config.augmented_dim if config.augmented_vectors else 0
        self.augment = (
            two_layers(2 * dim, dim, augmented, config.dropout) if config.augmented_vectors else None
        )
        self.combine = two_layers(2 * dim + augmented, 2 * dim, dim, config.dropout)

    def embed(self, rows_UD: Tensor, item_row_C: Tensor, category_row_CK: Tensor) -> Tensor:
        """e_id and e_cat, float32 (C, 2, D)."""
        return torch.stack([rows_of(rows_UD, item_row_C), sum_of_rows(rows_UD, category_row_CK)], dim=1)

    def forward(self, fields_C2D: Tensor) -> tuple[Tensor, Tensor | None]:
        """p_i, float32 (C, D), and a_i, float32 (C, A); None without augmented vectors."""
        joined = fields_C2D.flatten(1)
        # Detached: no loss reaches the tables through a_i (docs/model.md, gradient flow).
        augmented = self.augment(joined.detach()) if self.augment is not None else None
        inputs = joined if augmented is None else torch.cat([joined, augmented], dim=1)
        return self.combine(inputs) + fields_C2D.sum(1), augmented


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

    def field_rows(self, queries: QueryInputs) -> Tensor:
        """Rows that `forward` reads of each event, int64 (E, F): [user id,] activity, the configured attributes."""
        columns = [queries.user_row_E.unsqueeze(1)] if self.with_user_id else []
        columns.append(queries.activity_row_E.unsqueeze(1))
        # An empty batch does not say how many attributes there are, so the shape is set here.
        columns.append(
            queries.attribute_row_EF.reshape(queries.activity_row_E.shape[0], self.attribute_count)
        )
        return torch.cat(columns, dim=1)

    def first_weights(self) -> dict[str, Tensor]:
        """The weights that read z_u, by name: F·D columns in the order of `field_rows`, then a_u's columns if any."""
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
        return sum_of_rows(rows_UD, queries.rows_IK)

    def read(self, item_ID: Tensor, rows: TokenRows, reads: Reads) -> Tensor:
        """[mean over the window ⊕ last] of the encoded tokens before each event, float32 (Q, 2 D).

        Args:
            item_ID: vectors of the tokens.
            rows: the sequences; token I is the learned MASK vector.
            reads: of the events.
        """
        if reads.place_Q.shape[0] == 0 or rows.token_RL.shape[0] == 0:
            return item_ID.new_zeros(reads.place_Q.shape[0], 2 * item_ID.shape[1])
        tokens = torch.cat([item_ID, self.mask_D.unsqueeze(0)])
        state_RLD = F.embedding(rows.token_RL, tokens, padding_idx=0)
        if self.encoder is not None:
            state_RLD = self.encoder(state_RLD, rows)
        return mean_and_last(state_RLD, rows, reads, self.window)


class RecentSources(nn.Module):
    """Σ_b w_b source(b-th last item): separate embeddings that learn what tends to follow an item.

    source(i) is the item's source embedding, plus those of its categories with model.source_categories. The sum is a
    causal filter along the sequence: one small matrix product per row instead of B gathers per event.
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
        source_ID = sum_of_rows(rows_UD, queries.source_rows_IK)
        token_RLD = F.embedding(rows.token_RL, source_ID, padding_idx=0)
        mixed_RLD = self._filter(rows) @ token_RLD
        out: Tensor = self.dropout(last_states(mixed_RLD, queries.reads))
        return out

    def _filter(self, rows: TokenRows) -> Tensor:
        """The weight of token j for token i, w[distance], float32 (L, L) or (R, L, L)."""
        window = self.weight_B.shape[0]
        distance_LL, outside_LL = distances(rows.token_RL.shape[1], window, self.weight_B.device)
        weight_LL = F.embedding(distance_LL, self.weight_B.unsqueeze(1)).squeeze(2)
        if rows.shared:
            return weight_LL.masked_fill(outside_LL | rows.strange_RLL, 0.0)
        return weight_LL.masked_fill(outside_LL, 0.0)


class UserTower(nn.Module):
    """p_u = W_out[MLP_user(z_u) ⊕ mean ⊕ last] + w last + Σ_b w_b source_b (Eq. 12 and skips); all w are learned."""

    def __init__(self, config: ModelConfig, attribute_count: int) -> None:
        super().__init__()
        self.attributes = AttributeTower(config, attribute_count)
        self.history = HistoryTower(config)
        self.project = nn.Linear(3 * config.dim, config.dim)
        self.skip = nn.Parameter(torch.tensor(config.state_skip)) if config.state_skip > 0 else None
        self.sources = RecentSources(config) if config.source_items > 0 else None

    def combine(self, attribute_ED: Tensor, history_E2D: Tensor, source_ED: Tensor | None) -> Tensor:
        """p_u, float32 (E, D), of MLP_user(z_u), [mean ⊕ last] and the sources."""
        out: Tensor = self.project(torch.cat([attribute_ED, history_E2D], dim=1))
        if self.skip is not None:
            last_ED = history_E2D[:, attribute_ED.shape[1] :]
            out = torch.addcmul(out, self.skip, last_ED)
        return out if source_ED is None else out + source_ED
