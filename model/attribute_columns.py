"""Moves columns of the weights that read user attributes after a change of the list of attributes.

Shape letters: F user attributes, C columns of a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.towers import AttributeTower


@dataclass(frozen=True)
class EarlierColumns:
    """The columns of one weight under the earlier list.

    Attributes:
        place_C: int64, the column in the earlier weight; -1 for a column of a new attribute.
        width: columns of the earlier weight.
    """

    place_C: Tensor
    width: int

    def carried(self, earlier: Tensor, fresh: Tensor) -> Tensor:
        """The new weight: known columns from `earlier` (…, width), columns of new attributes from `fresh` (…, C)."""
        known_C = self.place_C >= 0
        weight = fresh.detach().clone()
        weight[..., known_C] = earlier[..., self.place_C[known_C]].to(weight)
        return weight


def earlier_columns(model: nn.Module, place_F: Sequence[int], count: int) -> dict[str, EarlierColumns]:
    """For every weight that reads user attributes, by parameter name, including the members of an ensemble.

    Args:
        model: has the new list of attributes.
        place_F: index of each of them in the earlier list; -1 if it was not in it.
        count: attributes in the earlier list.
    """
    return {
        f"{path}.{name}": _of_weight(tower, weight.shape[1], place_F, count)
        for path, tower in model.named_modules()
        if isinstance(tower, AttributeTower)
        for name, weight in tower.first_weights().items()
    }


def _of_weight(tower: AttributeTower, width: int, place_F: Sequence[int], count: int) -> EarlierColumns:
    """Blocks in the order of `AttributeTower.embed`, then the columns joined to them; only attributes' blocks move."""
    dim = tower.dim
    ahead = (1 + int(tower.with_user_id)) * dim
    behind = width - ahead - len(place_F) * dim
    blocks = [torch.arange(dim) + ahead + at * dim if at >= 0 else torch.full((dim,), -1) for at in place_F]
    end = ahead + count * dim
    return EarlierColumns(torch.cat([torch.arange(ahead), *blocks, end + torch.arange(behind)]), end + behind)
