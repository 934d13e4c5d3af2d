"""The ranks' agreement before each step: one small all-gather, then the same decision on every rank."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cluster.collectives import Collectives
from cluster.config import TrainConfig
from cluster.observability.figures import SUMMED


class StopNotice(Protocol):
    """Rank 0's view of a stop request."""

    @property
    def asked(self) -> bool:
        """Whether the run is to end with its present step; does not block."""

    def close(self) -> None:
        """It is not asked again."""


class NoStop:
    """The notice of a rank or a run that is never asked to stop."""

    asked = False

    def close(self) -> None:
        """See StopNotice."""


@dataclass
class Report:
    """What one rank tells the others. Wishes (`*_due`, `*_found`, `*_asked`, `catalogue_waiting`, `linger_over`): rank
    0's."""

    ready_rows: float = 0
    batch_full: float = 0
    """1 if no partition of this rank could give more to this step by waiting."""
    two_full: float = 0
    """1 if the same holds of this step and the next one together, and this rank takes batches ahead."""
    finished: float = 0
    sample: float = 0
    hits: float = 0
    popularity_hits: float = 0
    cooccurrence_hits: float = 0
    linger_over: float = 0
    catalogue_waiting: float = 0
    checkpoint_due: float = 0
    checkpoint_ready: float = 0
    """1 if this rank's part of the checkpoint in progress is written."""
    publish_due: float = 0
    delta_due: float = 0
    delta_ready: float = 0
    """1 if this rank's part of the last delta has ended."""
    growth_found: float = 0
    stop_asked: float = 0
    failed: float = 0
    figures: dict[str, float] = field(default_factory=dict)
    """This rank's share of every figure of `figures.SUMMED`; what is not given is 0."""

    def __post_init__(self) -> None:
        assert self.figures.keys() <= set(SUMMED), f"undeclared figures {self.figures.keys() - set(SUMMED)}"
        self.figures = dict.fromkeys(SUMMED, 0.0) | self.figures

    def encoded(self) -> npt.NDArray[np.float64]:
        """All numbers by name, as float64 (K,) for an exchange."""
        return np.array([*(getattr(self, name) for name in _OWN), *(self.figures[name] for name in SUMMED)])

    @classmethod
    def decoded(cls, row_K: npt.NDArray[np.float64]) -> Report:
        """The inverse of `encoded`."""
        said = dict(zip((*_OWN, *SUMMED), row_K.tolist(), strict=True))
        return cls(**{name: said[name] for name in _OWN}, figures={name: said[name] for name in SUMMED})


_OWN = tuple(item.name for item in fields(Report) if item.name != "figures")


@dataclass(frozen=True)
class Decision:
    """The next actions of every rank, in this order, and the totals of their reports."""

    catalogue: bool
    publish: bool
    delta: bool
    """Copy what has changed since the last delta; a batch may stay in hand."""
    checkpoint: bool
    checkpoint_ready: bool
    bound: bool
    """The topic has gained partitions: end the ones that are being read."""
    drained: bool
    """Every rank has read its share to the end."""
    stop: bool
    asked: bool
    """The run stops before its end because of a request."""
    step: bool
    failed: bool
    ahead: bool
    """While this step is computed, every rank takes the next one's batch."""
    totals: Report

    @property
    def only_a_step(self) -> bool:
        """Whether nothing but a step is to be done, so that a batch may stay in hand."""
        others = (
            self.catalogue,
            self.publish,
            self.checkpoint,
            self.checkpoint_ready,
            self.bound,
            self.drained,
            self.stop,
        )
        return not any(others)

    @property
    def validation(self) -> npt.NDArray[np.float64]:
        """Sample size and hits of the last step, in the order of `Curve.add`."""
        said = self.totals
        return np.array([said.sample, said.hits, said.popularity_hits, said.cooccurrence_hits])


def agree(comm: Collectives, mine: Report, config: TrainConfig) -> Decision:
    """Collective. Exchange reports and decide."""
    reports_WK = comm.exchange(mine.encoded())
    return decide([Report.decoded(row_K) for row_K in reports_WK], config)


def decide(reports: list[Report], config: TrainConfig) -> Decision:
    """A function of the reports alone, so that every rank comes to the same decision."""
    first = reports[0]
    totals = Report.decoded(np.array([report.encoded() for report in reports]).sum(axis=0))
    everyone = len(reports)
    drained = totals.finished == everyone and totals.ready_rows == 0
    enough = 0 < config.stop_after_rows <= totals.figures["rows_read"]
    asked = bool(first.stop_asked) and not (drained or enough)
    lingered = bool(first.linger_over) and not config.bounded
    return Decision(
        catalogue=bool(first.catalogue_waiting),
        publish=bool(first.publish_due) and not asked,
        delta=bool(first.delta_due) and totals.delta_ready == everyone and not asked,
        checkpoint=bool(first.checkpoint_due) and not asked,
        checkpoint_ready=totals.checkpoint_ready == everyone,
        bound=bool(first.growth_found),
        drained=drained,
        stop=drained or enough or asked,
        asked=asked,
        step=totals.ready_rows > 0 and (totals.batch_full == everyone or lingered),
        failed=totals.failed > 0,
        ahead=totals.two_full == everyone,
        totals=totals,
    )
