"""Parts of the trained baselines: dense towers, and their inputs from a user.

Shape letters: U keys of a step, I distinct items of the sequences, E events, F user attributes (id and activity
included), D columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.dropout import Dropout
from model.features import QueryInputs
from model.towers import rows_of
from model.transformer import mean_and_last


def dense_tower(inputs: int, config: ModelConfig) -> nn.Sequential:
    """`config.layers` hidden layers (linear, ReLU, dropout), each half as wide as the one before, then linear to D.

    With two layers: inputs, 4 D, 2 D, D (the tower pattern of Covington et al. 2016). The output is linear because the
    entries of a ReLU's output are never negative, so no two vectors could point in opposite directions.
    """
    layers: list[nn.Module] = []
    for k in range(config.layers, 0, -1):
        layers += [nn.Linear(inputs, config.dim << k), nn.ReLU(), Dropout(config.dropout)]
        inputs = config.dim << k
    tower = nn.Sequential(*layers, nn.Linear(inputs, config.dim))
    for module in tower:
        if isinstance(module, nn.Linear):
            initialise_linear(module)
    return tower


def initialise_linear(layer: nn.Linear) -> None:
    """U(−a, a) with a = √(6 / (inputs + outputs)), no bias (Glorot and Bengio 2010; DSSM, section 3.4).

    With N(0, model.init_std), the signal would almost vanish after several dense layers.
    """
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def user_field_count(config: ModelConfig, attribute_count: int) -> int:
    """F of `user_fields`."""
    return attribute_count + 1 + int(config.user_id_embedding)


def user_fields(rows_UD: Tensor, queries: QueryInputs, config: ModelConfig, attribute_count: int) -> Tensor:
    """The user's embedded attributes side by side, float32 (E, F · D): [user id,] activity, configured ones."""
    columns = [queries.user_row_E.unsqueeze(1)] if config.user_id_embedding else []
    columns.append(queries.activity_row_E.unsqueeze(1))
    # An empty batch does not say how many attributes there are, so the shape is set here.
    columns.append(queries.attribute_row_EF.reshape(queries.activity_row_E.shape[0], attribute_count))
    return rows_of(rows_UD, torch.cat(columns, dim=1)).flatten(1)


def history_mean(item_ID: Tensor, queries: QueryInputs, window: int) -> Tensor:
    """Mean vector of the last items before each event, float32 (E, D); zero for an event without history.

    Args:
        item_ID: float32, vectors of the sequences' distinct items; entry 0 is zero.
        queries: sequences and events.
        window: maximum number of items, as in `queries.reads`.
    """
    if queries.position_E.shape[0] == 0 or queries.history.token_RL.shape[0] == 0:
        return item_ID.new_zeros(queries.position_E.shape[0], item_ID.shape[1])
    token_RLD = F.embedding(queries.history.token_RL, item_ID, padding_idx=0)
    return mean_and_last(token_RLD, queries.history, queries.reads, window)[:, : item_ID.shape[1]]


def compared(vectors: Tensor, config: ModelConfig) -> Tensor:
    """The vectors whose inner product is the score, (..., D): of unit norm with model.similarity=cosine."""
    return F.normalize(vectors, dim=-1) if config.similarity == "cosine" else vectors
