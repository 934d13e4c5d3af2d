"""Several small models as one wide one: the sum of their scores, from one index.

Member k has its own columns of every embedding row and its own towers. Query and item vectors are the members' vectors
side by side, so one inner product is the sum of the members' scores. Each member is trained by its own loss, as if it
were alone. Two models of 64 columns need the same index as one of 128, and are more accurate together than either.

Shape letters: U keys of a step, D columns of all members, E events, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.features import ItemInputs, QueryInputs
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


@dataclass(frozen=True)
class MemberPlans(StepPlan):
    """The members' own."""

    of_members: tuple[StepPlan, ...]


class Ensemble(TwoTower):
    """Members side by side.

    Args:
        config: of the ensemble; each member has `dim / members` columns.
        make: creates a member from the member's settings.
    """

    def __init__(self, config: ModelConfig, make: Callable[[ModelConfig], TwoTower]) -> None:
        super().__init__(config)
        of_member = replace(config, dim=config.dim // config.members, members=1)
        self.members = nn.ModuleList(make(of_member) for _ in range(config.members))

    def plan(self, queries: QueryInputs, items: ItemInputs, *, seed: int, step: int) -> MemberPlans:
        """See TwoTower: one for each member."""
        return MemberPlans(
            tuple(
                member.plan(queries, items, seed=self._seed(seed, k), step=step)  # type: ignore[operator]
                for k, member in enumerate(self.members)
            )
        )

    def encode_queries(self, rows_UD: Tensor, queries: QueryInputs) -> QueryEncoding:
        """See TwoTower; of unit norm with similarity=cosine."""
        parts = [member.encode_queries(own, queries).vectors_ED for member, own in self._own(rows_UD)]
        return QueryEncoding(self._joined(parts))

    def encode_items(self, rows_UD: Tensor, items: ItemInputs) -> ItemEncoding:
        """See TwoTower; of unit norm with similarity=cosine."""
        parts = [member.encode_items(own, items).vectors_CD for member, own in self._own(rows_UD)]
        return ItemEncoding(self._joined(parts))

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
        """See TwoTower: the sums of the members' terms; their random views differ."""
        plans = plan.of_members if isinstance(plan, MemberPlans) else [None] * self.config.members
        terms = [
            member(own, queries, items, targets, gather, seed=self._seed(seed, k), step=step, plan=plans[k])
            for k, (member, own) in enumerate(self._own(rows_UD))
        ]
        return LossTerms(*(torch.stack(same).sum(0) for same in zip(*map(_values, terms), strict=True)))

    def _seed(self, seed: int, member: int) -> int:
        return seed * self.config.members + member

    def _own(self, rows_UD: Tensor) -> list[tuple[TwoTower, Tensor]]:
        """Each member with its columns, made contiguous because many small reads follow."""
        columns = rows_UD.chunk(len(self.members), dim=1)
        return [(member, own.contiguous()) for member, own in zip(self.members, columns, strict=True)]  # type: ignore[misc]

    def _joined(self, parts: list[Tensor]) -> Tensor:
        joined = torch.cat(parts, dim=1)
        return joined / len(parts) ** 0.5 if self.config.similarity == "cosine" else joined


def _values(terms: LossTerms) -> tuple[Tensor, ...]:
    return tuple(vars(terms).values())


def with_members(config: ModelConfig, make: Callable[[ModelConfig], TwoTower]) -> TwoTower:
    """The model itself, or an ensemble of `config.members` of them."""
    return make(config) if config.members == 1 else Ensemble(config, make)
