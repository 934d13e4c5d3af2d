"""A run's progress: steps, counts and positions, in the manifest.

Counts of the run are known to all ranks or to rank 0. Each rank reports what it has read, and the manifest has the sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from cluster.checkpoints.part import Copies, Part, Saved
from streaming.events.position import Position


class Steps(Protocol):
    """The part of `TrainingRun` that `StepPart` saves and restores."""

    @property
    def step(self) -> int:
        """Optimizer steps taken."""

    @property
    def events_seen(self) -> float:
        """Summed weight of the events of all steps."""

    def count_on_from(self, step: int, events_seen: float) -> None:
        """Continue counting from a step."""


class StepPart(Part):
    """The step, and the events trained so far.

    A run that starts from another's checkpoint continues its count. Random views and negatives are functions of (seed,
    step), so none are drawn again, and the learning-rate warm-up does not start again.
    """

    learnt = True

    def __init__(self, run: Steps) -> None:
        self._run = run

    def copies(self) -> Copies:
        """See Part."""
        return Copies(told={"step": self._run.step, "events_seen": self._run.events_seen})

    def restore(self, saved: Saved) -> None:
        """See Part."""
        self._run.count_on_from(int(saved.manifest["step"]), float(saved.manifest["events_seen"]))


class Counts(Protocol):
    """The part of `TrainingRun` that `CountsPart` saves and restores."""

    @property
    def rows_read(self) -> int:
        """Rows that this rank has read; on rank 0, plus those of earlier runs."""

    @property
    def rows_dead(self) -> int:
        """Dead letters among them."""

    @property
    def events_trained(self) -> int:
        """By all ranks."""

    @property
    def init_from(self) -> Mapping[str, Any] | None:
        """The checkpoint that the run was started from."""

    def restore_counts(
        self, events_trained: int, init_from: Mapping[str, Any] | None, *, rows_read: int, rows_dead: int
    ) -> None:
        """Restore the counts of earlier runs."""


class CountsPart(Part):
    """Rows read and events trained, over all restarts."""

    def __init__(self, run: Counts, rank: int) -> None:
        self._run, self._rank = run, rank

    def copies(self) -> Copies:
        """See Part."""
        run = self._run
        return Copies(
            told={
                "rows_read": run.rows_read,
                "dead_letters": run.rows_dead,
                "events_trained": run.events_trained,
                "init_from": run.init_from,
            }
        )

    def merged(self, told: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """See Part."""
        return {name: sum(rank[name] for rank in told) for name in ("rows_read", "dead_letters")}

    def restore(self, saved: Saved) -> None:
        """See Part."""
        manifest = saved.manifest
        speaks = self._rank == 0  # counted on one rank, so that the sum over ranks is the total
        self._run.restore_counts(
            int(manifest["events_trained"]),
            manifest.get("init_from"),
            rows_read=int(manifest["rows_read"]) if speaks else 0,
            rows_dead=int(manifest["dead_letters"]) if speaks else 0,
        )


class Places(Protocol):
    """The part of `TrainingRun` that `PositionsPart` saves and restores."""

    @property
    def partitions(self) -> Sequence[int]:
        """The partitions that this rank reads."""

    @property
    def catalogue_positions(self) -> Mapping[str, Mapping[int, Position]]:
        """Where reading the catalogue's topics continues (rank 0)."""

    def next_positions(self) -> Mapping[int, Position]:
        """Where reading each partition continues."""

    def restore_positions(
        self, positions: Mapping[int, Position], catalogue: Mapping[str, Mapping[int, Position]]
    ) -> None:
        """Read on from here."""


class PositionsPart(Part):
    """Where reading the stream and the catalogue continues."""

    def __init__(self, run: Places, rank: int) -> None:
        self._run, self._rank = run, rank

    def copies(self) -> Copies:
        """See Part."""
        return Copies(
            told={
                "positions": _to_json(self._run.next_positions()),
                "catalogue_positions": {t: _to_json(p) for t, p in self._run.catalogue_positions.items()},
            }
        )

    def merged(self, told: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """See Part."""
        return {"positions": {p: at for rank in told for p, at in rank["positions"].items()}}

    def restore(self, saved: Saved) -> None:
        """See Part; rank 0 reads the catalogue."""
        manifest, mine = saved.manifest, self._run.partitions
        positions = {p: at for p, at in _from_json(manifest["positions"]).items() if p in mine}
        topics = manifest["catalogue_positions"] if self._rank == 0 else {}
        self._run.restore_positions(
            positions, {topic: _from_json(places) for topic, places in topics.items()}
        )


def _to_json(positions: Mapping[int, Position]) -> dict[str, list[int]]:
    return {str(p): list(at) for p, at in positions.items()}


def _from_json(positions: Mapping[str, Sequence[int]]) -> dict[int, Position]:
    return {int(p): Position(*at) for p, at in positions.items()}
