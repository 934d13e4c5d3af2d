"""Rank 0's report about the run, for people and `status`: the content of `progress.json`."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.checkpoints.checkpoint import Checkpoint
from cluster.collectives import Collectives
from cluster.observability.delta_figures import DeltaFigures
from cluster.observability.figures import EXACT, summed_record
from cluster.observability.progress_file import ProgressFile
from cluster.publishing.publisher import Publisher
from cluster.queries.live_index import LiveIndex
from cluster.training.control import Report
from cluster.training.served.validation import ServedValidation
from cluster.training.state.run import TrainingRun
from retrieval.versions.store import VersionStore
from streaming.events.faults import FAULTS

_EVERY_S = 0.5
_RATE_WINDOW_S = 10.0


def rank_figures(run: TrainingRun) -> dict[str, float]:
    """This rank's share of the figures that are summed over the ranks, by their names in progress.json."""
    return {
        "rows_read": run.rows_read,
        "dead_letters": run.rows_dead,
        "events_negative": run.ledger.negatives,
        "events_ignored": run.ledger.ignored,
        "events_duplicate": run.ledger.duplicates,
        "events_quarantined": run.ledger.quarantined,
        "messages_skipped": sum(run.stream.skipped.values()),
        "lag_messages": sum(run.source.lag().values()),
        "lag_events": run.source.lag_events(),
        **{f"faults.{code}": float(run.faults[code]) for code in FAULTS},
    }


class ProgressReporter:
    """Collects figures on every rank, and writes them on rank 0."""

    def __init__(
        self,
        storage: Path,
        run_id: str,
        comm: Collectives,
        versions: VersionStore | None = None,
        served: ServedValidation | None = None,
    ) -> None:
        self.deltas = DeltaFigures()
        """Filled in by what makes deltas."""
        self.last: dict[str, Any] = {}
        self.checkpoint_problem = ""
        """Why checkpoints cannot be written at present; empty if they can."""
        self._file, self._comm = ProgressFile(storage), comm
        self._losses: Mapping[str, float] = {}
        self._steps: deque[tuple[float, int]] = deque()
        self._first_step_s: float | None = None
        self._events = 0
        self._written_s = 0.0
        self._checkpoint: dict[str, object] | None = None
        self._published_before = 0
        self._served = served
        self.served_before: Mapping[str, Any] | None = None
        """The figures of served validation from an earlier attempt."""
        self._live = LiveIndex(versions or VersionStore(storage / "index"))
        self._static: dict[str, Any] = {"run_id": run_id, "workers": comm.world}
        self._begin_attempt(run_id)

    def _begin_attempt(self, run_id: str) -> None:
        # The attempts of one submission share its run_id; versions of earlier attempts still count.
        before = self._file.read() if self._comm.rank == 0 else None
        same_run = before is not None and before.get("run_id") == run_id
        attempt = int(before["attempt"]) + 1 if before is not None and same_run else 1
        self._static |= {
            "attempt": attempt,
            "restarts": attempt - 1,
            "pids": self._comm.gather_objects(os.getpid()),
        }
        self.served_before = (before or {}).get("served")
        if before is not None and same_run:
            self._published_before = int((before.get("index") or {}).get("versions", 0))
            self._checkpoint = before.get("checkpoint")
        if self._comm.rank == 0:  # at once, so that an attempt that dies early also counts
            self._file.write({**(before if same_run and before else {}), **self._static, "state": "starting"})

    def stepped(self, losses: Mapping[str, float], events: int) -> None:
        """Record one optimizer step."""
        now = time.monotonic()
        self._first_step_s = self._first_step_s if self._first_step_s is not None else now
        self._losses = {**self._losses, **losses}  # a step need not take the contrastive ones
        self._events += events
        self._steps.append((now, events))
        while self._steps and self._steps[0][0] < now - _RATE_WINDOW_S:
            self._steps.popleft()

    def checkpointed(self, checkpoint: Checkpoint) -> None:
        """Record a committed checkpoint."""
        self._checkpoint = {"step": checkpoint.step, "path": checkpoint.location}

    def update(self, run: TrainingRun, totals: Report, publisher: Publisher) -> None:
        """Write at most twice a second."""
        if self._comm.rank == 0 and time.monotonic() - self._written_s >= _EVERY_S:
            self._write("training", run, totals, publisher)

    def finished(self, run: TrainingRun, totals: Report, publisher: Publisher) -> None:
        """Write the final report."""
        if self._comm.rank == 0:
            self._write("finished", run, totals, publisher)

    def stopped(self, run: TrainingRun, totals: Report, publisher: Publisher, error: str) -> None:
        """Write the final report of a run that was stopped; `error` says why its last checkpoint is missing."""
        if self._comm.rank == 0:
            self._write("stopped", run, totals, publisher, error)

    def metrics(self) -> dict[str, float]:
        """A few numbers for Ray's own tracking."""
        return {"events": float(self._events), **{f"loss_{name}": v for name, v in self._losses.items()}}

    def _write(
        self, state: str, run: TrainingRun, totals: Report, publisher: Publisher, error: str = ""
    ) -> None:
        self._written_s = time.monotonic()
        self.last = {
            **self._static,
            "state": state,
            "step": run.step,
            "events_trained": run.events_trained,
            **summed_record(totals.figures),
            "notice": run.notice,
            "error": "; ".join(filter(None, (error, self.checkpoint_problem, publisher.problem))),
            "stop_error": error,
            "loss": dict(self._losses),
            "examples_per_s": self._rate(),
            "mean_examples_per_s": self._mean_rate(),
            "known_items": int(run.catalogue.item_count),
            "progressive": {"kind": EXACT, **run.curve.to_json()},
            "served": self._served.to_json() if self._served is not None else None,
            "checkpoint": self._checkpoint,
            "index": self._index(publisher),
            "deltas": self.deltas.to_json(),
            "freshness": publisher.freshness.figures(),
        }
        self._file.write(self.last)

    def _index(self, publisher: Publisher) -> dict[str, Any] | None:
        """The live version of any publisher, the number of this run's versions, and the gates of its last one."""
        live, report = self._live.figures(), publisher.last
        versions = self._published_before + publisher.published
        if not live and not versions and report is None:
            return None
        return {**live, "versions": versions, "gate": asdict(report.gate) if report is not None else None}

    def _rate(self) -> float:
        if len(self._steps) < 2:
            return 0.0
        spent = time.monotonic() - self._steps[0][0]
        return sum(events for _, events in self._steps) / spent if spent > 0 else 0.0

    def _mean_rate(self) -> float:
        spent = time.monotonic() - self._first_step_s if self._first_step_s is not None else 0.0
        return self._events / spent if spent > 0 else 0.0
