"""When a run publishes an index version: of a checkpoint that holds what there is when the version is due.

due ──► the last checkpoint holds it ─────────────────────► build
    ──► one is in progress, or begins now ─► committed ───► build
                                         └─► given up ────► no version; the next one is due at its time
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import numpy as np

from cluster.collectives import Collectives
from cluster.publishing.publisher import Publisher
from cluster.training.saving import Saving
from cluster.training.since import Since
from cluster.training.state.run import TrainingRun

_CLOCK = "the clock"
_LEAST_SHARE, _LEAST_S = 0.5, 60.0
"""Time between two versions by a limit at least: a share of `train.publish_every_s`, or so many seconds."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Wanted:
    """A version that waits for a checkpoint: how many had been committed, and had ended, when it was due."""

    committed: int
    tried: int


class Publishing:
    """The versions of one run.

    Args:
        publisher: makes them.
        comm: the ranks.
        saving: the run's checkpoints.
        since: remembers what was published.
        every_s: seconds between two versions; 0 for the last one only.
    """

    def __init__(
        self, publisher: Publisher, comm: Collectives, saving: Saving, since: Since, every_s: float
    ) -> None:
        self._publisher, self._comm, self._saving, self._since = publisher, comm, saving, since
        self._every_s = every_s
        self._last_s = time.monotonic()
        self._wanted: _Wanted | None = None
        self._asked = ""
        self.reason = ""
        """Why the last version was due."""

    def ask(self, reason: str) -> None:
        """Let the next version be due at once (rank 0), unless there is none but the last one.

        Args:
            reason: for people.
        """
        if self._every_s > 0 and not self._asked:
            self._asked = reason

    def ask_in_time(self, reason: str, now: float) -> None:
        """The same, but not soon after the last one, so that a limit that is passed at once does not follow another."""
        if now - self._last_s >= min(_LEAST_SHARE * self._every_s, _LEAST_S):
            self.ask(reason)

    def consider(self, run: TrainingRun, now: float) -> None:
        """See whether a version is due, or what it waits for has failed (rank 0)."""
        if self._wanted is not None and self._given_up:
            self._publisher.give_up(self._saving.problem)
            self._wanted = None
        elif self._wanted is None and self._due(run, now):
            self._wanted = _Wanted(self._saving.committed, self._saving.tried)
            self._last_s = now
            self.reason, self._asked = self._asked or _CLOCK, ""
            if self.reason != _CLOCK:
                _log.info("a full refresh is due: %s", self.reason)

    @property
    def ready(self) -> bool:
        """Whether there is a checkpoint for the version that is due (rank 0)."""
        if self._wanted is None:
            return False
        return self._since.saved_model or self._saving.committed > self._wanted.committed

    @property
    def wants_checkpoint(self) -> bool:
        """Whether the version that is due waits for one (rank 0)."""
        return self._wanted is not None and not self.ready

    def publish(self, run: TrainingRun) -> None:
        """Collective. Build a version of the newest checkpoint beside training."""
        if self._comm.rank == 0:
            self._since.published()
        self._wanted = None
        self._start(run)

    def publish_last(self, run: TrainingRun) -> None:
        """Collective, after the last checkpoint. See that the live version is of that one, and wait for it."""
        self._publisher.wait()
        lacking = self._comm.exchange(np.array([float(self._lacks_version)]))[0, 0]
        if _worth(run) and lacking:
            self._start(run)
            self._publisher.wait()

    def _start(self, run: TrainingRun) -> None:
        newest = self._saving.newest if self._comm.rank == 0 else None
        self._publisher.start(newest, run.progressive.recent_queries, run.catalogue.item_count)

    def _due(self, run: TrainingRun, now: float) -> bool:
        waited = 0 < self._every_s <= now - self._last_s or bool(self._asked)
        return waited and not self._publisher.busy and _worth(run) and self._lacks_version

    @property
    def _given_up(self) -> bool:
        """Whether the checkpoint that a version waited for came to nothing."""
        wanted = self._wanted
        return wanted is not None and self._saving.tried > wanted.tried and not self.ready

    @property
    def _lacks_version(self) -> bool:
        """Whether the last version, if it could be written, is not of what there is now (rank 0)."""
        return self._since.unpublished or bool(self._publisher.problem)


def _worth(run: TrainingRun) -> bool:
    """A run that was started from a checkpoint has steps behind it before it knows of any item."""
    return run.step > 0 and run.catalogue.item_count > 0
