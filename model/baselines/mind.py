"""MIND: several interest vectors per user, found in the history by dynamic routing.

Source: Li et al., "Multi-Interest Network with Dynamic Routing for Recommendation at Tmall", CIKM 2019.

Shape letters: U keys of a step, I distinct items of the sequences, E events, W window, K interests, F user
attributes, C items, M candidates of all ranks, Q queries, D columns.
"""

from __future__ import annotations

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.baselines.plain_towers import (
    compared,
    dense_tower,
    initialise_linear,
    user_field_count,
    user_fields,
)
from model.config import ModelConfig
from model.features import ItemInputs, QueryInputs
from model.towers import rows_of, sum_of_rows
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

INTERESTS = 4
ROUTING_ITERATIONS = 3
_LOGIT_SEED = 0
_SHORT = 8
"""Histories up to this length are routed separately, without the padding of longer ones."""


class InterestRouting(nn.Module):
    """Behaviour-to-interest routing (section 4.3): items are routed to the interests whose sum they agree with.

    b_kj starts from N(0, 1) and is then, in every iteration,
    w_kj = softmax over k of b_kj,  u_k = squash(Σ_j w_kj S e_j),  b_kj ← b_kj + u_k · S e_j.

    The initial b depend on interest and position in the history, counted back from the event; they are drawn once and
    not trained. S is one matrix for all pairs. Only the last iteration has a gradient.
    """

    initial_KW: Tensor

    def __init__(self, config: ModelConfig, interests: int, iterations: int) -> None:
        super().__init__()
        self.iterations = iterations
        self.bilinear = nn.Linear(config.dim, config.dim, bias=False)
        initialise_linear(self.bilinear)
        generator = torch.Generator().manual_seed(_LOGIT_SEED)
        self.register_buffer("initial_KW", torch.randn(interests, config.history_length, generator=generator))

    def forward(self, item_ID: Tensor, token_EW: Tensor) -> Tensor:
        """The interests at each event, float32 (E, K, D); zero for an event without history.

        Args:
            item_ID: float32, vectors of distinct items; entry 0 is zero.
            token_EW: int64, items before each event, newest first, padded with 0.
        """
        mapped_ID: Tensor = self.bilinear(item_ID)
        short_E = (token_EW[:, _SHORT:] == 0).all(dim=1)
        # Most histories are much shorter than the window, and routing padding costs as much as routing items.
        interest_EKD = mapped_ID.new_zeros((token_EW.shape[0], self.initial_KW.shape[0], mapped_ID.shape[1]))
        for chosen_E, longest in ((short_E, _SHORT), (~short_E, token_EW.shape[1])):
            at = chosen_E.nonzero().squeeze(1)
            interest_EKD = interest_EKD.index_copy(0, at, self._routed(mapped_ID, token_EW[at, :longest]))
        return interest_EKD

    def _routed(self, mapped_ID: Tensor, token_EW: Tensor) -> Tensor:
        """The interests at some events, float32 (E, K, D)."""
        behaviour_EWD = F.embedding(token_EW, mapped_ID, padding_idx=0)
        logits_EKW = self.initial_KW[:, : token_EW.shape[1]].unsqueeze(0)
        fixed_EWD = behaviour_EWD.detach()
        for _ in range(self.iterations - 1):
            interest_EKD = _weighted(logits_EKW, fixed_EWD)
            logits_EKW = logits_EKW + interest_EKD @ fixed_EWD.transpose(1, 2)
        return _weighted(logits_EKW, behaviour_EWD)


class MIND(TwoTower):
    """K vectors per user, MLP([user attributes; interest k]) each; an item's score is the maximum over them.

    Training: label-aware attention with an infinite power, that is, an event's loss uses only the interest with the
    largest inner product with its target (section 4.4). Retrieval: `encode_queries` returns the K vectors side by side,
    float32 (E, K · D), and `scores` takes the maximum over them.
    An item is the sum of the embeddings of its id and categories on both sides (the paper pools id and side
    information). K is the same for all users; the paper gives users with few items fewer, to save space.

    Args:
        config: reads `dim`, `layers` (hidden ones after the routing), `history_length`, `dropout`, `temperature`,
            `similarity`, `user_id_embedding`; hides no input items.
        attribute_count: configured user attributes (without user id and activity).
        interests: K.
        iterations: of the routing.
    """

    def __init__(
        self,
        config: ModelConfig,
        attribute_count: int,
        interests: int = INTERESTS,
        iterations: int = ROUTING_ITERATIONS,
    ) -> None:
        super().__init__(config)
        self.attribute_count, self.interests = attribute_count, interests
        self.routing = InterestRouting(config, interests, iterations)
        width = (user_field_count(config, attribute_count) + 1) * config.dim
        self.user_tower = dense_tower(width, config)

    def encode_queries(self, rows_UD: Tensor, queries: QueryInputs) -> QueryEncoding:
        """See TwoTower: float32 (E, K · D), each D of unit norm with similarity=cosine."""
        item_ID = sum_of_rows(rows_UD, queries.rows_IK)
        interest_EKD = self.routing(item_ID, last_tokens(queries, self.config.history_length))
        fields = user_fields(rows_UD, queries, self.config, self.attribute_count)
        fields = fields.unsqueeze(1).expand(-1, self.interests, -1)
        vectors_EKD = self.user_tower(torch.cat([fields, interest_EKD], dim=2))
        return QueryEncoding(compared(vectors_EKD, self.config).flatten(1))

    def encode_items(self, rows_UD: Tensor, items: ItemInputs) -> ItemEncoding:
        """See TwoTower; of unit norm with similarity=cosine."""
        vectors_CD = rows_of(rows_UD, items.item_row_C) + sum_of_rows(rows_UD, items.category_row_CK)
        return ItemEncoding(compared(vectors_CD, self.config))

    def scores(self, query_QD: Tensor, item_ID: Tensor) -> Tensor:
        """The largest inner product over the interests, float32 (Q, I); `query_QD` is (Q, K · D)."""
        # One interest at a time, because (Q, K, I) of a large catalogue takes much memory.
        return reduce(torch.maximum, (one_QD @ item_ID.T for one_QD in self._interests(query_QD).unbind(1)))

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
        """See TwoTower; every candidate is compared with the interest that fits the event's target best."""
        query = self.encode_queries(rows_UD, queries)
        item_MD = gather(self.encode_items(rows_UD, items).vectors_CD)
        self._require_candidates(item_MD, targets)
        chosen_ED = self._chosen(query.vectors_ED, item_MD[targets.target_E])
        return self._terms(rows_UD, self._main(chosen_ED @ item_MD.T, queries, targets))

    def _chosen(self, query_ED: Tensor, target_ED: Tensor) -> Tensor:
        """For each event the interest that fits its target best, float32 (E, D)."""
        interest_EKD = self._interests(query_ED)
        best_E = (interest_EKD @ target_ED.unsqueeze(2)).squeeze(2).argmax(dim=1)
        return interest_EKD[torch.arange(best_E.shape[0], device=best_E.device), best_E]

    def _interests(self, query_QD: Tensor) -> Tensor:
        return query_QD.view(query_QD.shape[0], self.interests, self.config.dim)


def last_tokens(queries: QueryInputs, window: int) -> Tensor:
    """The items before each event, newest first, int64 (E, W), padded with 0."""
    back_W = torch.arange(window, device=queries.position_E.device)
    place_EW = queries.history.start_N[queries.sequence_E].unsqueeze(1) + (
        queries.position_E.unsqueeze(1) - 1 - back_W
    )
    inside_EW = back_W < queries.position_E.unsqueeze(1)
    # Before the first item comes another sequence of the row, which must not be read.
    tokens = queries.history.token_RL.reshape(-1)
    if tokens.shape[0] == 0:
        return torch.zeros_like(place_EW)
    return tokens[place_EW.clamp(0, tokens.shape[0] - 1)].masked_fill(~inside_EW, 0)


def squash(x: Tensor) -> Tensor:
    """‖x‖² / (1 + ‖x‖²) · x / ‖x‖ along the last dimension: the direction of x with a length below 1."""
    square = x.square().sum(-1, keepdim=True)
    # √0 has no gradient, and an event without history has only zeros.
    return x * (square + 1e-12).sqrt() / (1.0 + square)


def _weighted(logits_EKW: Tensor, behaviour_EWD: Tensor) -> Tensor:
    """squash(Σ_j w_kj S e_j), float32 (E, K, D); padding has zero vectors and adds nothing."""
    return squash(logits_EKW.softmax(dim=1) @ behaviour_EWD)
