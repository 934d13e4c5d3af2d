"""DSSM as a recommender: two dense towers that meet in a cosine.

Source: Huang et al., "Learning Deep Structured Semantic Models for Web Search using Clickthrough Data", CIKM 2013.
The user replaces the query, and the item the document.

Shape letters: U keys of a step, E events, C items, D columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.baselines.plain_towers import compared, dense_tower, history_mean, user_field_count, user_fields
from model.config import ModelConfig
from model.features import ItemInputs, QueryInputs
from model.towers import rows_of, sum_of_rows
from model.two_tower import ItemEncoding, QueryEncoding, TwoTower


class DSSM(TwoTower):
    """v_u = MLP([user attributes; mean of the history]), v_i = MLP([id; categories]), softmax of cos(v_u, v_i) / τ.

    An item of the history enters as the sum of the embeddings of its id and categories, as in the item tower.
    Differences from the paper: rows of ids instead of word hashing, ReLU instead of tanh, optionally dot for cosine.

    Args:
        config: reads `dim`, `layers` (hidden ones of each tower), `history_length`, `dropout`, `temperature`,
            `similarity`, `user_id_embedding`; hides no input items.
        attribute_count: configured user attributes (without user id and activity).
    """

    def __init__(self, config: ModelConfig, attribute_count: int) -> None:
        super().__init__(config)
        self.attribute_count = attribute_count
        width = (user_field_count(config, attribute_count) + 1) * config.dim
        self.user_tower = dense_tower(width, config)
        self.item_tower = dense_tower(2 * config.dim, config)

    def encode_queries(self, rows_UD: Tensor, queries: QueryInputs) -> QueryEncoding:
        """See TwoTower; of unit norm with similarity=cosine."""
        item_ID = sum_of_rows(rows_UD, queries.rows_IK)
        mean_ED = history_mean(item_ID, queries, self.config.history_length)
        fields = user_fields(rows_UD, queries, self.config, self.attribute_count)
        vectors_ED = self.user_tower(torch.cat([fields, mean_ED], dim=1))
        return QueryEncoding(compared(vectors_ED, self.config))

    def encode_items(self, rows_UD: Tensor, items: ItemInputs) -> ItemEncoding:
        """See TwoTower; of unit norm with similarity=cosine."""
        id_CD = rows_of(rows_UD, items.item_row_C)
        category_CD = sum_of_rows(rows_UD, items.category_row_CK)
        vectors_CD = self.item_tower(torch.cat([id_CD, category_CD], dim=1))
        return ItemEncoding(compared(vectors_CD, self.config))
