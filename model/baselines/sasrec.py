"""SASRec: causal self-attention over the history's items; the last state is compared with item embeddings.

Source: Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018.

Shape letters: U keys of a step, E events, C items of this rank, M candidates of all ranks, R rows of L tokens,
H heads, D columns.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.augmentation import RandomKey
from model.baselines.plain_towers import compared
from model.config import ModelConfig
from model.dropout import dropout
from model.features import ItemInputs, QueryInputs
from model.token_rows import TokenRows
from model.towers import rows_of
from model.transformer import RelativeBias, attention, last_states
from model.two_tower import (
    Gather,
    ItemEncoding,
    LossTerms,
    QueryEncoding,
    StepPlan,
    Targets,
    TwoTower,
    no_gather,
)

NEGATIVE_DRAW = 128
"""Salt of SASRecBCE's draws, distinct from those of model.augmentation."""


class SASRecBlock(nn.Module):
    """x + drop(attention(LN x)), then x + drop(FFN(LN x)); FFN = linear, ReLU, linear, of width D (section III-B/C).

    The paper adds an absolute position to each item. In a packed sequence an item's position differs between the events
    that read it, so position is a learned bias by distance instead, with W numbers per head.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.dropout = config.dropout
        self.attention_norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.to_out = nn.Linear(dim, dim)
        self.bias = RelativeBias(config.heads, config.history_length)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.first = nn.Linear(dim, dim)
        self.second = nn.Linear(dim, dim)

    def forward(self, x_RLD: Tensor, apart_R1LL: Tensor | None) -> Tensor:
        """float32 (R, L, D) to the same shape; `apart_R1LL` as in TokenRows."""
        bias_HLL = self.bias(x_RLD.shape[1])
        mixed_RLD = attention(self.to_qkv(self.attention_norm(x_RLD)), bias_HLL, apart_R1LL)
        x_RLD = x_RLD + self._drop(self.to_out(mixed_RLD))
        hidden = self._drop(F.relu(self.first(self.feed_forward_norm(x_RLD))))
        return x_RLD + self._drop(self.second(hidden))

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


class SASRec(TwoTower):
    """v_u = the last state, v_i = the item's embedding, trained with the same sampled softmax as the other systems.

    As in the paper, an item is its id alone, and both sides share one table, scaled by √D at the input of the blocks.
    User attributes are not read.

    Args:
        config: reads `dim`, `layers` (blocks), `heads`, `history_length`, `dropout`, `temperature`, `similarity`
            (the paper's is dot, its temperature 1), `init_std`; hides no input items.
        attribute_count: not read.
    """

    def __init__(self, config: ModelConfig, attribute_count: int) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList([SASRecBlock(config) for _ in range(config.layers)])
        self.output_norm = nn.LayerNorm(config.dim)
        self.initialise()

    def encode_queries(self, rows_UD: Tensor, queries: QueryInputs) -> QueryEncoding:
        """See TwoTower; of unit norm with similarity=cosine, zero without history."""
        rows = queries.history
        if queries.position_E.shape[0] == 0 or rows.token_RL.shape[0] == 0:
            return QueryEncoding(rows_UD.new_zeros(queries.position_E.shape[0], rows_UD.shape[1]))
        state_RLD = self._states(rows_of(rows_UD, queries.item_row_I), rows)
        last_ED = last_states(state_RLD, queries.reads)
        return QueryEncoding(compared(last_ED, self.config))

    def encode_items(self, rows_UD: Tensor, items: ItemInputs) -> ItemEncoding:
        """See TwoTower; of unit norm with similarity=cosine."""
        return ItemEncoding(compared(rows_of(rows_UD, items.item_row_C), self.config))

    def _states(self, item_ID: Tensor, rows: TokenRows) -> Tensor:
        """Encoded tokens, float32 (R, L, D)."""
        token_RLD = F.embedding(rows.token_RL, item_ID, padding_idx=0) * math.sqrt(self.config.dim)
        state_RLD = dropout(token_RLD, self.config.dropout, self.training)
        for block in self.blocks:
            state_RLD = block(state_RLD, rows.apart_R1LL)
        out: Tensor = self.output_norm(state_RLD)
        return out


class SASRecBCE(SASRec):
    """SASRec with the loss of its paper: binary cross-entropy with one negative per event, uniform over the catalogue.

    The negative is drawn from the step's candidates that the event's user is not known to like, with weight 1/q. An
    item is a candidate with probability q, so every item is drawn equally often. (If targets were left out, popular
    items would hardly ever be negatives.) The loss itself uses neither logQ nor in-batch negatives.
    """

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
        """See TwoTower; the draws are a function of (seed, step, event)."""
        query_ED = self.encode_queries(rows_UD, queries).vectors_ED
        item_MD = gather(self.encode_items(rows_UD, items).vectors_CD)
        self._require_candidates(item_MD, targets)
        id_M = gather(items.id_C)
        allowed_EM = (~targets.drop_EM).scatter(1, targets.target_E.unsqueeze(1), False)
        uniform_E = RandomKey(seed, step).uniform(
            NEGATIVE_DRAW, queries.key_E, torch.zeros_like(queries.key_E)
        )
        negative_E, found_E = draw_negatives(allowed_EM, torch.exp(-targets.log_q_M), id_M, uniform_E)
        main = one_negative_cross_entropy(
            (query_ED * item_MD[targets.target_E]).sum(1) / self.config.temperature,
            (query_ED * item_MD[negative_E]).sum(1) / self.config.temperature,
            found_E,
            queries.weight_E,
            targets.global_events,
        )
        return self._terms(rows_UD, main)


def draw_negatives(
    allowed_EM: Tensor, weight_M: Tensor, id_M: Tensor, uniform_E: Tensor
) -> tuple[Tensor, Tensor]:
    """One of the allowed candidates for each event, drawn with probability proportional to its weight.

    Candidates are sorted by id first, because the gathered order depends on the number of ranks.

    Args:
        allowed_EM: bool.
        weight_M: float32, positive.
        id_M: int64, distinct.
        uniform_E: float32 in [0, 1), decides the draw.
    Returns:
        Index of the drawn candidate, int64 (E,), and whether there is one, bool (E,).
    """
    if allowed_EM.numel() == 0:
        nothing = torch.zeros(allowed_EM.shape[0], dtype=torch.int64, device=allowed_EM.device)
        return nothing, nothing.bool()
    order_M = id_M.argsort()
    running_EM = (allowed_EM[:, order_M] * weight_M[order_M].double()).cumsum(1)
    total_E = running_EM[:, -1]
    column_E = (running_EM > (uniform_E * total_E).unsqueeze(1)).to(torch.uint8).argmax(1)
    return order_M[column_E], total_E > 0


def one_negative_cross_entropy(
    positive_E: Tensor, negative_E: Tensor, found_E: Tensor, weight_E: Tensor, global_events: float
) -> Tensor:
    """L = −1/B Σ_e w_e [log σ(r_e⁺) + log(1 − σ(r_e⁻))]  (SASRec, section III-E).

    Args:
        positive_E: float32, score of each event's item.
        negative_E: float32, score of its negative.
        found_E: bool, whether it has a negative; if not, its second term is 0.
        weight_E: float32.
        global_events: B, the sum of weights over all ranks.
    """
    loss_E = F.softplus(-positive_E) + F.softplus(negative_E) * found_E
    return (loss_E * weight_E).sum() / max(global_events, 1e-12)
