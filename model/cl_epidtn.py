"""CL-EPIDTN: two towers with augmented vectors, trained by a sampled softmax, mimic and contrastive losses.

A training step encodes everything in one pass of each tower: the sequences of the main loss, their two views and the
explicit negatives are rows of one batch. Attributes and items are batched with their views in the same way.

Shape letters: U keys of a step, E events and C candidates of this rank, M candidates of all ranks, S distinct users
and T target items of this rank, I distinct items of the sequences, F attributes, V fields of all views, A augmented
width, Q reads of sequences, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.augmentation import RandomKey, view_factors
from model.config import ModelConfig
from model.contrastive import (
    VIEWS,
    ContrastiveLosses,
    Views,
    attribute_draws,
    input_mask,
    item_draws,
    sequence_masks,
)
from model.ensemble import with_members
from model.features import ItemInputs, QueryInputs
from model.losses import mimic
from model.token_rows import Reads, TokenRows, reads_at, stacked
from model.towers import ItemTower, UserTower, rows_of
from model.two_tower import (
    Gather,
    ItemEncoding,
    LossTerms,
    QueryEncoding,
    StepPlan,
    Targets,
    TwoTower,
    no_gather,
    weighted,
)
from model.unit_norm import unit


@dataclass(frozen=True)
class TrainingPass(StepPlan):
    """What one pass of each tower encodes."""

    rows: TokenRows
    """The sequences with some tokens hidden: for the main loss, for each view, and the explicit negatives."""
    reads: Reads
    """Reads of the events, then of the users in each view and in the negatives."""
    field_row_XF: Tensor
    """int64, attributes of the events, then of the users as of their last event."""
    item_row_X: Tensor
    """int64, the candidates, then the items that have views."""
    category_row_XK: Tensor
    start_V: Tensor
    """int64, start of each field's dropout numbers: users in each view, then items."""
    kept_V: Tensor
    """bool, whether the view keeps the field."""
    user_S: Tensor
    """int64, raw ids."""
    group_S: Tensor
    item_T: Tensor
    """int64, raw ids."""
    has_negative_S: Tensor | None
    """bool, whether the user has explicit negatives; None if no user has any."""
    losses: ContrastiveLosses
    """Those that this step takes."""


@dataclass(frozen=True)
class _Encoded:
    """The outputs of one pass of each tower."""

    query: QueryEncoding
    item: ItemEncoding
    views: tuple[Views | None, Views | None, Views | None]
    """Views of sequences, attributes and items; None where the loss has weight 0."""


class CLEPIDTN(TwoTower):
    """The paper's model; its ablations are settings.

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
        self.initialise()

    def encode_queries(self, rows_UD: Tensor, queries: QueryInputs) -> QueryEncoding:
        """See TwoTower; of unit norm with similarity=cosine."""
        tower = self.user_tower
        attribute_ED, augmented = tower.attributes(rows_of(rows_UD, tower.attributes.field_rows(queries)))
        item_ID = tower.history.item_vectors(rows_UD, queries)
        history_E2D = tower.history.read(item_ID, queries.history, queries.reads)
        return QueryEncoding(self._query(rows_UD, queries, attribute_ED, history_E2D), augmented)

    def encode_items(self, rows_UD: Tensor, items: ItemInputs) -> ItemEncoding:
        """See TwoTower; of unit norm with similarity=cosine."""
        fields_C2D = self.item_tower.embed(rows_UD, items.item_row_C, items.category_row_CK)
        vectors_CD, augmented = self.item_tower(fields_C2D)
        return ItemEncoding(self._scaled(vectors_CD), augmented)

    def plan(self, queries: QueryInputs, items: ItemInputs, *, seed: int, step: int) -> TrainingPass:
        """See TwoTower: what each pass encodes, with what the main loss's input and the views hide."""
        return self._plan(queries, items, RandomKey(seed, step), self.config.input_mask_ratio)

    def _plan(
        self, queries: QueryInputs, items: ItemInputs, key: RandomKey, input_mask_ratio: float
    ) -> TrainingPass:
        losses = ContrastiveLosses(self.config, key.step)
        anchor_S, event_S = queries.anchor_sequence_S, queries.anchor_event_S
        if losses.attribute_weight == 0:
            event_S = event_S[:0]
        chosen_T = items.target_T
        if losses.item_weight == 0:
            chosen_T = chosen_T[:0]
        elif self.config.contrastive_items == "candidates":
            chosen_T = torch.arange(items.id_C.shape[0])
        rows, reads, has_negative_S = self._sequences(
            queries, key, input_mask_ratio, with_views=losses.sequence_weight > 0
        )
        field_row_EF = self.user_tower.attributes.field_rows(queries)
        users = attribute_draws(key, queries.user_E[event_S], field_row_EF.shape[1], self.config)
        targets = item_draws(key, items.id_C[chosen_T], self.config)
        return TrainingPass(
            rows=rows,
            reads=reads,
            field_row_XF=torch.cat([field_row_EF, field_row_EF[event_S]]),
            item_row_X=torch.cat([items.item_row_C, items.item_row_C[chosen_T]]),
            category_row_XK=torch.cat([items.category_row_CK, items.category_row_CK[chosen_T]]),
            start_V=torch.cat([*users[0], *targets[0]]),
            kept_V=torch.cat([*users[1], *targets[1]]),
            user_S=queries.user_N[anchor_S],
            group_S=queries.group_E[queries.anchor_event_S],
            item_T=items.id_C[chosen_T],
            has_negative_S=has_negative_S,
            losses=losses,
        )

    def _sequences(
        self, queries: QueryInputs, key: RandomKey, input_mask_ratio: float, *, with_views: bool
    ) -> tuple[TokenRows, Reads, Tensor | None]:
        """The sequence encoder's input for one pass, the reads of it, and which users have explicit negatives."""
        config, main = self.config, queries.history
        mask_token = queries.item_row_I.shape[0]
        hidden = [input_mask(key, queries, input_mask_ratio)]
        if with_views:
            hidden += sequence_masks(key, queries, config.sequence_mask_ratio)
        parts = [replace(main, token_RL=main.token_RL.masked_fill(h, mask_token)) for h in hidden]
        if not with_views:
            return parts[0], queries.reads, None
        anchor_S, sequences = queries.anchor_sequence_S, main.length_N.shape[0]
        sequence = [queries.sequence_E, *(anchor_S + (1 + view) * sequences for view in VIEWS)]
        position = [queries.position_E, *(main.length_N[anchor_S] for _ in VIEWS)]
        has_negative_S = None
        if queries.negatives.token_RL.shape[0]:
            count_S = queries.negatives.length_N[anchor_S]
            has_negative_S = count_S > 0
            parts.append(queries.negatives)
            sequence.append(anchor_S + (1 + len(VIEWS)) * sequences)
            position.append(count_S)
        rows = stacked(parts)
        reads = reads_at(rows, torch.cat(sequence), torch.cat(position), config.history_length)
        return rows, reads, has_negative_S

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
        """See TwoTower: the main loss, both mimic losses and the three contrastive ones (Eq. 20)."""
        if not isinstance(plan, TrainingPass):
            ratio = self.config.input_mask_ratio if self.training else 0.0
            plan = self._plan(queries, items, RandomKey(seed, step), ratio)
        encoded = self.encode_step(rows_UD, queries, items, plan)
        item_MD, augmented_MA = self._gather_items(encoded.item, gather)
        self._require_candidates(item_MD, targets)
        main = self._main(self.scores(encoded.query.vectors_ED, item_MD), queries, targets)
        zero = rows_UD.new_zeros(())
        mimics = self._mimic(encoded.query, item_MD, augmented_MA, queries, targets, zero)
        contrastive = plan.losses.losses(encoded.views, gather, zero)
        return self._terms(rows_UD, main, *mimics, *contrastive)

    def encode_step(
        self, rows_UD: Tensor, queries: QueryInputs, items: ItemInputs, plan: TrainingPass
    ) -> _Encoded:
        """Everything that the losses compare, in one pass of each tower."""
        user, config = self.user_tower, self.config
        events, users = queries.position_E.shape[0], plan.field_row_XF.shape[0] - queries.position_E.shape[0]
        candidates, chosen = items.id_C.shape[0], plan.item_T.shape[0]
        factor_VD = view_factors(plan.start_V, plan.kept_V, config.dim, config.view_dropout)
        of_users = len(VIEWS) * users * plan.field_row_XF.shape[1]

        fields_XFD = rows_of(rows_UD, plan.field_row_XF)
        fields = with_views(fields_XFD, events, factor_VD[:of_users])
        attributes, augmented_XA = user.attributes(fields)
        attribute_ED, *attribute_views = torch.split(attributes, [events, *[users] * len(VIEWS)])

        fields_X2D = self.item_tower.embed(rows_UD, plan.item_row_X, plan.category_row_XK)
        vectors, augmented_CA = self.item_tower(with_views(fields_X2D, candidates, factor_VD[of_users:]))
        vectors_CD, *item_views = torch.split(vectors, [candidates, *[chosen] * len(VIEWS)])

        item_ID = user.history.item_vectors(rows_UD, queries)
        read_Q2D = user.history.read(item_ID, plan.rows, plan.reads)
        losses, has_negative_S = plan.losses, plan.has_negative_S
        anchors = plan.user_S.shape[0] if losses.sequence_weight > 0 else 0
        parts = [anchors] * (len(VIEWS) + int(has_negative_S is not None))
        history_E2D, *sequence_views = torch.split(read_Q2D, [events, *parts])
        query = self._query(rows_UD, queries, attribute_ED, history_E2D)
        negative = sequence_views[len(VIEWS)] if has_negative_S is not None else None
        views = (
            Views(sequence_views[0], sequence_views[1], plan.user_S, None, negative, has_negative_S)
            if losses.sequence_weight > 0
            else None,
            Views(attribute_views[0], attribute_views[1], plan.user_S, plan.group_S)
            if losses.attribute_weight > 0
            else None,
            Views(item_views[0], item_views[1], plan.item_T) if losses.item_weight > 0 else None,
        )
        return _Encoded(
            QueryEncoding(query, None if augmented_XA is None else augmented_XA[:events]),
            ItemEncoding(
                self._scaled(vectors_CD), None if augmented_CA is None else augmented_CA[:candidates]
            ),
            views,
        )

    def _query(
        self, rows_UD: Tensor, queries: QueryInputs, attribute_ED: Tensor, history_E2D: Tensor
    ) -> Tensor:
        tower = self.user_tower
        source_ED = tower.sources(rows_UD, queries) if tower.sources is not None else None
        return self._scaled(tower.combine(attribute_ED, history_E2D, source_ED))

    def _gather_items(self, item: ItemEncoding, gather: Gather) -> tuple[Tensor, Tensor | None]:
        """Vectors and augmented vectors of all ranks' candidates, gathered in one message."""
        if item.augmented_CA is None:
            return gather(item.vectors_CD), None
        gathered = gather(torch.cat([item.vectors_CD, item.augmented_CA], dim=1))
        item_MD, augmented_MA = torch.split(gathered, [self.config.dim, item.augmented_CA.shape[1]], dim=1)
        return item_MD, augmented_MA

    def _mimic(
        self,
        query: QueryEncoding,
        item_MD: Tensor,
        augmented_MA: Tensor | None,
        queries: QueryInputs,
        targets: Targets,
        zero: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Weighted L_mu and L_mi (Eqs. 4 and 5)."""
        if query.augmented_EA is None or augmented_MA is None:
            return zero, zero
        weight, count = queries.weight_E, targets.global_events
        target_ED = item_MD.detach().index_select(0, targets.target_E)
        user = mimic(self.mimic_user_head(query.augmented_EA), target_ED, weight, count)
        head_ED = self.mimic_item_head(F.embedding(targets.target_E, augmented_MA))
        other = mimic(head_ED, query.vectors_ED, weight, count)
        config = self.config
        return weighted(user, config.mimic_user_weight), weighted(other, config.mimic_item_weight)

    def _scaled(self, vectors: Tensor) -> Tensor:
        return unit(vectors) if self.config.similarity == "cosine" else vectors


def with_views(fields_XFD: Tensor, main: int, factor_VD: Tensor) -> Tensor:
    """The fields of the main rows, then the other rows' fields once per view, float32 (main + views · others, F, D).

    Args:
        fields_XFD: float32, the main rows, then the others.
        main: number of main rows.
        factor_VD: float32, factor of each column of the other rows' fields, view after view.
    """
    if factor_VD.shape[0] == 0:
        return fields_XFD
    main_XFD, other_XFD = torch.split(fields_XFD, [main, fields_XFD.shape[0] - main])
    views = other_XFD * factor_VD.view(len(VIEWS), *other_XFD.shape)
    return torch.cat([main_XFD, views.flatten(0, 1)])


def cl_epidtn(config: ModelConfig, attribute_count: int) -> TwoTower:
    """The model that is trained on a stream and served: CL-EPIDTN, or an ensemble of `config.members` of them.

    Args:
        config: sizes and switches.
        attribute_count: configured user attributes (without user id and activity).
    """
    return with_members(config, lambda own: CLEPIDTN(own, attribute_count))
