"""A training step that leaves out the events that cannot be trained on, and trains the others exactly once.

Shape letters: E events of this rank, G events of all ranks.

Where a step is refused, its events are halved, and the halves again, until those are found that are refused alone.
Every probe is a forward and a backward of all ranks that is not applied, so all of them search alike. Events are
numbered by partition and place, so what is found does not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from cluster.collectives import Collectives
from cluster.training.generators import generator_states, restore_generators
from cluster.training.progressive import ProgressiveValidation
from cluster.training.quarantine import Quarantined
from cluster.training.train_step import StepRefused, TrainStep
from streaming.batch_selection import event_rows, select_events

Int64Array = npt.NDArray[np.int64]
Probe = Callable[[Int64Array], str]
"""Why a step of the events with these numbers would be refused, "" if it would not. Collective."""

MOST_FOUND = 16
"""So many events of one step are looked for one by one: each costs about 2 log2(events) probes of ever fewer events."""


@dataclass(frozen=True)
class StepOutcome:
    """What became of a step.

    Attributes:
        trained: this rank's events that were trained on.
        events: how many those are on all ranks.
        losses: of these, all terms summed over ranks.
        validation: what they scored before, as `ProgressiveValidation.rank` gives it; None if nothing was trained.
        quarantined: the others.
    """

    trained: pa.RecordBatch
    events: int
    losses: Mapping[str, float]
    validation: npt.NDArray[np.float64] | None
    quarantined: Quarantined | None = None


@dataclass
class Findings:
    """What a search found.

    Attributes:
        reasons: why an event cannot be trained on, by its number.
        gave_up: whether some of them are events that were not looked at one by one.
    """

    reasons: dict[int, str] = field(default_factory=dict)
    gave_up: bool = False


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

    def train(self, batch: pa.RecordBatch, step: int) -> StepOutcome:
        """Train on a batch, or on what of it can be trained on.

        Args:
            batch: this rank's events.
            step: counts from 0.
        """
        attempt = _Attempt(self._train_step, self._device, self._validation, step)
        try:
            return attempt.train(batch)
        except StepRefused as refused:
            reason = refused.reason
        number_E, count = number_events(batch, self._comm)

        def chosen(numbers: Int64Array) -> pa.RecordBatch:
            return select_events(batch, np.isin(number_E, numbers))

        def probe(numbers: Int64Array) -> str:
            return self._train_step.probe(chosen(numbers), step)

        found, left = Findings(), np.arange(count)
        # Most events are bad alone, which is cheap to find; what is bad only beside others is found the other way.
        for search in (search_apart, search_together):
            search(probe, left, reason, found)
            left = np.setdiff1d(left, list(found.reasons))
            if left.shape[0] == 0:
                break
            try:
                return _with(attempt.train(chosen(left)), batch, number_E, found)
            except StepRefused as refused:
                reason = refused.reason
        found.reasons |= dict.fromkeys(left.tolist(), reason)
        found.gave_up |= left.shape[0] > 0
        return _with(StepOutcome(batch.slice(0, 0), 0, {}, None), batch, number_E, found)


class _Attempt:
    """Tries to train a step, of all events or of some: each time from the same state, scored once at most."""

    def __init__(
        self, train_step: TrainStep, device: torch.device, validation: ProgressiveValidation, step: int
    ) -> None:
        self._train_step, self._device, self._validation, self._step = train_step, device, validation, step
        self._known_before = train_step.catalogue.item_ids.shape[0]
        self._generators = generator_states(device)
        self._scored: npt.NDArray[np.float64] | None = None

    def train(self, batch: pa.RecordBatch) -> StepOutcome:
        restore_generators(self._generators, self._device)
        prepared = self._train_step.prepare(batch, self._step, known_before=self._known_before)
        events = prepared.global_targets.events
        if events == 0:
            return StepOutcome(batch, 0, {}, None)
        if self._scored is None:
            self._scored = self._validation.rank(batch, prepared)
        losses = self._train_step.train(prepared, self._step)
        self._validation.count(prepared)
        return StepOutcome(batch, events, losses, self._scored)


def number_events(batch: pa.RecordBatch, comm: Collectives) -> tuple[Int64Array, int]:
    """Collective. A number for each event of this rank, int64 (E,), by partition and place; how many all ranks have."""
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
        probe: of some of the events.
        numbers: int64 (G,), events that are refused all together.
        reason: why.
        found: is added to.
    """
    refused = [(numbers, reason)]
    while refused:
        part, why = refused.pop()
        if part.shape[0] == 1:
            found.reasons[int(part[0])] = why
            if len(found.reasons) >= MOST_FOUND:
                _give_up(refused, found)
                return
            continue
        for half in reversed(np.array_split(part, 2)):
            if why := probe(half):
                refused.append((half, why))


def search_together(probe: Probe, numbers: Int64Array, reason: str, found: Findings) -> None:
    """Find events without which the others are not refused; arguments as for `search_apart`."""
    good, most = numbers[:0], len(found.reasons) + MOST_FOUND
    parts = [(numbers, reason)]
    while parts:
        part, _ = parts.pop()
        if not (why := probe(np.concatenate([good, part]))):
            good = np.concatenate([good, part])
        elif part.shape[0] == 1:
            found.reasons[int(part[0])] = why
            if len(found.reasons) >= most:
                _give_up(parts, found)
                return
        else:
            parts += [(half, why) for half in reversed(np.array_split(part, 2))]


def _give_up(parts: Iterable[tuple[Int64Array, str]], found: Findings) -> None:
    for part, why in parts:
        found.reasons |= dict.fromkeys(part.tolist(), why)
        found.gave_up = True


def _with(outcome: StepOutcome, batch: pa.RecordBatch, number_E: Int64Array, found: Findings) -> StepOutcome:
    bad_E = np.isin(number_E, list(found.reasons))
    quarantined = Quarantined(
        batch=select_events(batch, bad_E),
        reasons=[found.reasons[number] for number in number_E[bad_E].tolist()],
        events=len(found.reasons),
        reason=found.reasons[min(found.reasons)],
        is_step=found.gave_up or outcome.events == 0,
    )
    return replace(outcome, quarantined=quarantined)
