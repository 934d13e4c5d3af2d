"""The steps of one rank: takes a batch, trains on it, and records it."""

from __future__ import annotations

import logging
import time

import numpy as np
import pyarrow as pa
import torch

from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.observability.freshness import UnpublishedAppends
from cluster.publishing.quality import RecentEvents
from cluster.training.intake.taking import BatchTaker
from cluster.training.progress_report import ProgressReporter
from cluster.training.served.validation import ServedValidation
from cluster.training.state.run import TrainingRun
from cluster.training.steps.guarded_step import GuardedStep, StepOutcome
from cluster.training.steps.progressive import sample_bits
from cluster.training.steps.quarantine import Quarantined, describe_places, poisoned, quarantine_letters

_log = logging.getLogger(__name__)


class Stepping:
    """Trains on one batch after another.

    Args:
        config: settings.
        comm: the ranks.
        device: of the towers.
        progress: reports each step.
        unpublished: collects when the events of each step were appended to the topic.
        served: asks the live version about events of each step.
        sampled: collects the sampled events for the quality gate.
    """

    def __init__(
        self,
        config: FreshetConfig,
        comm: Collectives,
        device: torch.device,
        progress: ProgressReporter,
        unpublished: UnpublishedAppends,
        served: ServedValidation,
        sampled: RecentEvents,
    ) -> None:
        self._config, self._comm, self._device = config, comm, device
        self._progress, self._unpublished, self._served = progress, unpublished, served
        self._sampled = sampled
        self._attached: tuple[TrainingRun, BatchTaker] | None = None
        self.validation = np.zeros(4)
        """(sample, hits, popularity hits, co-occurrence hits) of this rank since `forget_validation`."""
        self.validated_at = 0
        """Number of events trained on before the last step."""
        self._refused_in_a_row = 0
        self.last_step_s = time.monotonic()

    def attach(self, run: TrainingRun) -> None:
        """Train this run, whose stream is open, from here on."""
        quota = max(1, self._config.train.batch_events // run.stream.partitions)
        self._attached = (run, BatchTaker(run, quota))

    @property
    def quota(self) -> int:
        """Rows of each partition in one global step: a function of the settings and the topic alone."""
        return self._taker.quota

    @property
    def in_hand(self) -> bool:
        """Whether a batch has been taken ahead, or could not be."""
        return self._taker.in_hand

    @property
    def ready_rows(self) -> int:
        """Rows that the next step could take now."""
        return self._run.batcher.ready_rows(self.quota) + self._taker.rows_in_hand

    @property
    def batch_full(self) -> bool:
        """Whether no partition of this rank could give more to the next step by waiting."""
        return self.in_hand or self.wait_full(0.0)

    @property
    def two_full(self) -> bool:
        """Whether the same holds for the next two steps together, and this rank takes batches ahead."""
        # A batch taken ahead is already taken.
        quota = self.quota if self.in_hand else 2 * self.quota
        return self._may_take_ahead and self._run.batcher.wait_full(quota, 0.0)

    def wait_full(self, timeout_s: float) -> bool:
        """Wait until no partition could give more to a step, or until time is up; returns whether none could."""
        return self._run.batcher.wait_full(self.quota, timeout_s)

    def forget_validation(self) -> None:
        """Reset `validation`, because all ranks' values are in the curve."""
        self.validation = np.zeros(4)

    def step(self, *, ahead: bool) -> None:
        """Collective. Train on the next batch; with `ahead`, take the one after it while a device computes."""
        run, taker = self._run, self._taker
        batch = taker.next()
        self.last_step_s = time.monotonic()
        guarded = GuardedStep(run.train_step, self._comm, self._device, run.progressive)

        def meanwhile() -> None:
            if ahead:
                taker.take_ahead(run.train_step)

        left: pa.RecordBatch | None = batch
        while left is not None:  # once, except for events that can only be trained on in smaller steps
            try:
                outcome = guarded.train(left, run.step, meanwhile)
            except Exception as error:
                error.add_note(f"in training step {run.step} of {describe_places(left)}")
                raise
            self._account_for(outcome)
            left = outcome.left
        meanwhile()  # a rank that refused the step may not have come to it: all have a batch in hand, or none

    @property
    def _run(self) -> TrainingRun:
        assert self._attached is not None, "attach() comes first"
        return self._attached[0]

    @property
    def _taker(self) -> BatchTaker:
        assert self._attached is not None, "attach() comes first"
        return self._attached[1]

    @property
    def _may_take_ahead(self) -> bool:
        """Whether to take batches ahead: not on a CPU, where it is useless, nor in a run with a limit of rows."""
        return self._device.type != "cpu" and self._config.train.stop_after_rows == 0

    def _account_for(self, outcome: StepOutcome) -> None:
        run = self._run
        if outcome.quarantined is not None:
            self._quarantine(outcome.quarantined)
        else:
            self._refused_in_a_row = 0
        if outcome.events == 0:
            return
        if outcome.validation is not None:
            self.validation = self.validation + outcome.validation
        self.validated_at = run.events_trained
        self._served.offer(outcome.trained, run.step, run.events_trained)
        self._sampled.add_sampled(
            outcome.trained, sample_bits(outcome.trained) < self._config.progressive.sample_fraction
        )
        run.count_step(outcome.trained, outcome.events)
        self._unpublished.add(outcome.trained.column("append_ms").flatten().to_numpy())
        self._progress.stepped(outcome.losses, outcome.events)

    def _quarantine(self, quarantined: Quarantined) -> None:
        """Handle events that could not be trained on; every rank calls this for the same step."""
        run, topic = self._run, self._config.stream.dead_letters
        letters = quarantine_letters(quarantined, run.source, run.step, run.texts)
        _log.error(
            "step %d could not be trained with %d of its events, of which %d of this rank go to %s: %s",
            run.step,
            quarantined.events,
            len(letters),
            topic,
            quarantined.reason,
        )
        run.dead_letters.send(letters)
        run.faults.update({"quarantined": len(letters)})
        run.ledger.add_quarantined(quarantined.batch)
        self._refused_in_a_row = self._refused_in_a_row + 1 if quarantined.is_step else 0
        if self._refused_in_a_row >= self._config.train.max_poison_batches:
            run.dead_letters.flush()
            raise poisoned(self._refused_in_a_row, run.step, quarantined.reason, topic)
