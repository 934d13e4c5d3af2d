"""When a run publishes an index version, and of what."""

from __future__ import annotations

import time

import numpy as np

from cluster.collectives import Collectives
from cluster.publishing.publisher import Publisher, Snapshot
from cluster.training.since import Since
from cluster.training.state.run import TrainingRun


class Publishing:
    """The versions of one run.

    Args:
        publisher: makes them.
        comm: the ranks.
        since: remembers what was published.
        every_s: seconds between two versions; 0 for the last one only.
    """

    def __init__(self, publisher: Publisher, comm: Collectives, since: Since, every_s: float) -> None:
        self._publisher, self._comm, self._since, self._every_s = publisher, comm, since, every_s
        self._last_s = time.monotonic()

    def due(self, run: TrainingRun, now: float) -> bool:
        """Whether a version should be made (rank 0)."""
        waited = 0 < self._every_s <= now - self._last_s
        return waited and not self._publisher.busy and _worth(run) and self._lacks_version

    def publish(self, run: TrainingRun) -> None:
        """Collective. Copy what a version is made of; rank 0 builds it beside training."""
        snapshot = self._snapshot(run)
        if snapshot is not None:
            self._since.published()
        if self._comm.rank == 0 and snapshot is not None:
            self._publisher.build_in_background(snapshot)
        self._last_s = time.monotonic()

    def publish_last(self, run: TrainingRun) -> None:
        """Collective. See that the live version is of what there is now, and wait for it."""
        if self._comm.rank == 0:
            self._publisher.wait()
        lacking = self._comm.exchange(np.array([float(self._lacks_version)]))[0, 0]
        if _worth(run) and lacking:
            snapshot = self._snapshot(run)
            if self._comm.rank == 0 and snapshot is not None:
                self._publisher.build_in_background(snapshot)
                self._publisher.wait()

    @property
    def _lacks_version(self) -> bool:
        """Whether the last version, if it could be written, is not of what there is now (rank 0)."""
        return self._since.unpublished or bool(self._publisher.problem)

    def _snapshot(self, run: TrainingRun) -> Snapshot | None:
        metadata: dict[str, object] = {
            "step": run.step,
            "events_trained": run.events_trained,
            "known_items": int(run.catalogue.item_count),
        }
        return self._publisher.snapshot(
            run.model, run.table, run.catalogue, run.progressive.recent_queries, metadata
        )


def _worth(run: TrainingRun) -> bool:
    """A run that was started from a checkpoint has steps behind it before it knows of any item."""
    return run.step > 0 and run.catalogue.item_count > 0
