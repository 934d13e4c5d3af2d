"""YouTube DNN: a dense user tower and plain item embeddings.

Source: Covington, Adams, Sargin, "Deep Neural Networks for YouTube Recommendations", RecSys 2016, section 3.

Shape letters: U keys of a step, E events, C items, D columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.baselines.plain_towers import compared, dense_tower, history_mean, user_field_count, user_fields
from model.config import ModelConfig
from model.features import ItemInputs, QueryInputs
from model.towers import rows_of
from model.two_tower import ItemEncoding, QueryEncoding, TwoTower


class YouTubeDNN(TwoTower):
    """v_u = MLP([user attributes; mean of the history's item embeddings]), v_i = the item's embedding.

    As in the paper, an item is its id alone (no categories), both sides share one table, and the loss is the sampled
    softmax with importance weights, here logQ. Inputs that other logs lack (searches, example age) are left out.

    Args:
        config: reads `dim`, `layers` (hidden ones), `history_length`, `dropout`, `temperature`, `similarity`,
            `user_id_embedding`; hides no input items.
        attribute_count: configured user attributes (without user id and activity).
    """

    def __init__(self, config: ModelConfig, attribute_count: int) -> None:
        super().__init__(config)
        self.attribute_count = attribute_count
        width = (user_field_count(config, attribute_count) + 1) * config.dim
        self.user_tower = dense_tower(width, config)

    def encode_queries(self, rows_UD: Tensor, queries: QueryInputs) -> QueryEncoding:
        """See TwoTower; of unit norm with similarity=cosine."""
        item_ID = rows_of(rows_UD, queries.item_row_I)
        mean_ED = history_mean(item_ID, queries, self.config.history_length)
        fields = user_fields(rows_UD, queries, self.config, self.attribute_count)
        vectors_ED = self.user_tower(torch.cat([fields, mean_ED], dim=1))
        return QueryEncoding(compared(vectors_ED, self.config))

    def encode_items(self, rows_UD: Tensor, items: ItemInputs) -> ItemEncoding:
        """See TwoTower; of unit norm with similarity=cosine."""
        return ItemEncoding(compared(rows_of(rows_UD, items.item_row_C), self.config))
