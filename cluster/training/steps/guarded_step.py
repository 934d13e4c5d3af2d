"""A training step that leaves out the events that cannot be trained on, and trains the others exactly once.

Shape letters: E events of this rank, G events of all ranks.

If a step is refused, its events are halved repeatedly until those are found that are refused alone. Every probe is a
forward and backward pass of all ranks that is not applied, so all ranks search in the same way. Events are numbered by
partition and place, so the result does not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from cluster.checkpoints.parts.generators import generator_states, restore_generators
from cluster.collectives import Collectives
from cluster.training.steps.candidates import Runs
from cluster.training.steps.progressive import ProgressiveValidation
from cluster.training.steps.quarantine import Quarantined
from cluster.training.steps.refusal import StepRefused
from cluster.training.steps.train_step import PreparedStep, TrainStep
from streaming.arrays import Int64Array
from streaming.batches.selection import event_rows, select_events

Probe = Callable[[Int64Array], str]
"""Collective. Why a step of the events with these numbers would be refused; "" if it would not."""

MOST_TOGETHER = 16
"""Maximum number of events searched for in one step that are bad only together with others: each takes log2(events)
probes of up to all good events. The rest becomes a step of its own and is searched in smaller pieces."""
MOST_ALONE = 16
"""After this many bad events without any probe that passed, as many others are tried. If they are bad too, the model is
at fault, and every event would be refused."""


@dataclass(frozen=True)
class StepOutcome:
    """The result of a step.

    Attributes:
        trained: this rank's events that were trained on.
        events: their number on all ranks.
        losses: their loss terms, summed over ranks.
        validation: their score before training, from `ProgressiveValidation.rank`; None if nothing was trained.
        quarantined: events that cannot be trained on.
        left: this rank's events that are neither and become a step of their own; None, on every rank, if there are none
            on any.
    """

    trained: pa.RecordBatch
    events: int
    losses: Mapping[str, float]
    validation: npt.NDArray[np.float64] | None
    quarantined: Quarantined | None = None
    left: pa.RecordBatch | None = None


@dataclass
class Findings:
    """The result of a search.

    Attributes:
        reasons: why an event cannot be trained on, by its number.
        gave_up: whether nothing could be trained on, so that not all events were tried one by one.
        unsearched: events, int64, that may be bad together with those known to be good.
    """

    reasons: dict[int, str] = field(default_factory=dict)
    gave_up: bool = False
    unsearched: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))


class GuardedStep:
    """Trains steps. Collective."""

    def __init__(
        self,
        train_step: TrainStep,
        comm: Collectives,
        device: torch.device,
        validation: ProgressiveValidation,
    ) -> None:
        self._train_step, self._comm, self._device, self._validation = train_step, comm, device, validation

    def train(
        self, batch: pa.RecordBatch, step: int, meanwhile: Callable[[], object] = lambda: None
    ) -> StepOutcome:
        """Train on a batch, or on the part of it that can be trained on.

        Args:
            batch: this rank's events.
            step: counts from 0.
            meanwhile: not collective; called any number of times while the device computes.
        """
        attempt = _Attempt(self._train_step, self._device, self._validation, step, meanwhile)
        try:
            return attempt.train(batch)
        except StepRefused as refused:
            reason = refused.reason
        self._know_items(batch)
        number_E, count = number_events(batch, self._comm)

        def chosen(numbers: Int64Array) -> pa.RecordBatch:
            return select_events(batch, np.isin(number_E, numbers))

        def probe(numbers: Int64Array, *, scored: bool) -> str:
            return attempt.probe(chosen(numbers), scored=scored)

        found, left = Findings(), np.arange(count)
        # Most bad events are bad alone, which is cheap to detect, without scoring the whole catalogue.
        for search, scored in ((search_apart, False), (search_apart, True), (search_together, False)):
            known = len(found.reasons)
            search(partial(probe, scored=scored), left, reason, found)
            if len(found.reasons) == known and search is search_apart:
                continue
            left = np.setdiff1d(left, [*found.reasons, *found.unsearched.tolist()])
            if left.shape[0] == 0:
                break
            try:
                return _with(attempt.train(chosen(left)), batch, number_E, found)
            except StepRefused as refused:
                reason = refused.reason
        found.reasons |= dict.fromkeys(left.tolist(), reason)
        found.gave_up |= left.shape[0] > 0
        return _with(StepOutcome(batch.slice(0, 0), 0, {}, None), batch, number_E, found)

    def _know_items(self, batch: pa.RecordBatch) -> None:
        """Add the step's new items to the catalogue, in an order that does not depend on probes."""
        mine = np.unique(Runs.of(batch).targets_E)
        self._train_step.catalogue.add_items(np.unique(self._comm.gather_ints(mine)))


class _Attempt:
    """Tries to train a step of all or some events, each time from the same state."""

    def __init__(
        self,
        train_step: TrainStep,
        device: torch.device,
        validation: ProgressiveValidation,
        step: int,
        meanwhile: Callable[[], object],
    ) -> None:
        self._train_step, self._device, self._validation, self._step = train_step, device, validation, step
        self._meanwhile = meanwhile
        self._known_before = train_step.catalogue.item_count
        # 5 kB on a CPU, in 3 microseconds, which is negligible for any step.
        self._generators = generator_states(device)
        self._queries = validation.recent_queries

    def train(self, batch: pa.RecordBatch) -> StepOutcome:
        self._go_back()
        prepared = self._train_step.prepare(batch, self._step, known_before=self._known_before)
        events = prepared.global_targets.events
        if events == 0:
            return StepOutcome(batch, 0, {}, None)
        scored: list[npt.NDArray[np.float64]] = []
        losses = self._train_step.train(
            prepared,
            self._step,
            score=lambda: scored.append(self._validation.rank(batch, prepared)),
            meanwhile=self._meanwhile,
        )
        self._validation.count(prepared)
        return StepOutcome(batch, events, losses, scored[0])

    def probe(self, batch: pa.RecordBatch, *, scored: bool) -> str:
        """Why these events would be refused, "" if they would not; with or without progressive validation."""
        self._go_back()

        def score(prepared: PreparedStep) -> None:
            if scored:
                self._validation.rank(batch, prepared)

        return self._train_step.probe(batch, self._step, known_before=self._known_before, score=score)

    def _go_back(self) -> None:
        restore_generators(self._generators, self._device)
        self._validation.recent_queries = self._queries


def number_events(batch: pa.RecordBatch, comm: Collectives) -> tuple[Int64Array, int]:
    """Collective. A number for each event of this rank, int64 (E,), by partition and place, and the total number."""
    partition_E = batch.column("partition").to_numpy()[event_rows(batch)]
    mine, count = np.unique(partition_E, return_counts=True)
    everyone = comm.gather_ints(np.stack([mine.astype(np.int64), count], axis=1))
    everyone = everyone[np.argsort(everyone[:, 0])]
    first = dict(
        zip(everyone[:, 0].tolist(), (np.cumsum(everyone[:, 1]) - everyone[:, 1]).tolist(), strict=True)
    )
    number_E = np.empty(partition_E.shape[0], np.int64)
    for partition, events in zip(mine.tolist(), count.tolist(), strict=True):
        number_E[partition_E == partition] = first[partition] + np.arange(events)
    return number_E, int(everyone[:, 1].sum())


def search_apart(probe: Probe, numbers: Int64Array, reason: str, found: Findings) -> None:
    """Find the events that are refused alone.

    Args:
        probe: tries some of the events.
        numbers: int64 (G,), events that are refused together.
        reason: of that refusal.
        found: results are added here.
    """
    refused, any_good = [(numbers, reason)], False
    while refused:
        part, why = refused.pop()
        if part.shape[0] == 1:
            found.reasons[int(part[0])] = why
            if not any_good and len(found.reasons) == MOST_ALONE:
                spread = numbers[np.linspace(0, len(numbers) - 1, MOST_ALONE).astype(np.int64)]
                if all(probe(number) for number in np.split(spread, MOST_ALONE)):
                    found.reasons |= dict.fromkeys(numbers.tolist(), why)
                    found.gave_up = True
                    return
                any_good = True
            continue
        for half in reversed(np.array_split(part, 2)):
            if why := probe(half):
                refused.append((half, why))
            else:
                any_good = True


def search_together(probe: Probe, numbers: Int64Array, reason: str, found: Findings) -> None:
    """Find events without which the others are not refused; arguments as for `search_apart`."""
    good, most = numbers[:0], len(found.reasons) + MOST_TOGETHER
    parts = [(numbers, reason)]
    while parts:
        part, _ = parts.pop()
        if not (why := probe(np.concatenate([good, part]))):
            good = np.concatenate([good, part])
        elif part.shape[0] > 1:
            parts += [(half, why) for half in reversed(np.array_split(part, 2))]
        else:
            found.reasons[int(part[0])] = why
            if len(found.reasons) >= most:
                found.unsearched = np.concatenate([numbers[:0], *(part for part, _ in parts)])
                return


def _with(outcome: StepOutcome, batch: pa.RecordBatch, number_E: Int64Array, found: Findings) -> StepOutcome:
    if not found.reasons:  # refused once but not again: an intermittent fault
        return outcome
    bad_E = np.isin(number_E, list(found.reasons))
    quarantined = Quarantined(
        batch=select_events(batch, bad_E),
        reasons=[found.reasons[number] for number in number_E[bad_E].tolist()],
        events=len(found.reasons),
        reason=found.reasons[min(found.reasons)],
        is_step=found.gave_up or outcome.events == 0,
    )
    unsearched = found.unsearched
    left = select_events(batch, np.isin(number_E, unsearched)) if unsearched.shape[0] else None
    return replace(outcome, quarantined=quarantined, left=left)
