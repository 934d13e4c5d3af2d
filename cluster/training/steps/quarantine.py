"""Events that could not be trained on: their originals go to the dead-letter topic, and training continues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson
import pyarrow as pa

from cluster.training.steps.candidates import Runs
from streaming.events.dead_letter import DeadLetter
from streaming.events.faults import Reason
from streaming.events.position import EventSource, RowPlace
from streaming.histories.id_texts import KnownTexts


class PoisonedTraining(RuntimeError):
    """Many consecutive steps were refused, so the fault is not in a few events."""


@dataclass(frozen=True)
class Quarantined:
    """The events that a step could not be trained on.

    Attributes:
        batch: this rank's events.
        reasons: one for each of them.
        events: their number on all ranks.
        reason: of the first one on any rank.
        is_step: whether the whole step could not be trained. The same on every rank, as are `events` and `reason`.
    """

    batch: pa.RecordBatch
    reasons: Sequence[str]
    events: int
    reason: str
    is_step: bool


def poisoned(steps: int, step: int, reason: str, topic: str) -> PoisonedTraining:
    """The error to raise after a number of consecutive refused steps."""
    return PoisonedTraining(
        f"{steps} training steps one after another could not be trained on (step {step}: {reason}); "
        f"their events are in the topic {topic!r}. The model itself may be at fault: lower train.learning_rate or "
        "train.row_learning_rate and resume from an earlier checkpoint, or raise train.max_poison_batches."
    )


def quarantine_letters(
    quarantined: Quarantined, source: EventSource, step: int, texts: KnownTexts
) -> list[DeadLetter]:
    """A dead letter for each of this rank's events.

    Args:
        quarantined: the events and their reasons.
        source: provides positions and originals; if an original is gone, the batch's data of the event are used.
        step: of the optimizer.
        texts: of ids that came as texts.
    """
    batch = quarantined.batch
    runs = Runs.of(batch)
    partition_E = batch.column("partition").to_numpy()[runs.run_E].tolist()
    offset_E, row_E = (batch.column(name).flatten().to_pylist() for name in ("offset", "row"))
    places = [RowPlace(*place) for place in zip(partition_E, offset_E, row_E, strict=True)]
    if not places:
        return []
    originals = source.originals(places)
    known = {
        "user_id": texts.users.as_given(runs.user_N[runs.run_E]),
        "item_id": texts.items.as_given(runs.targets_E),
        "timestamp_ms": _target_times(batch),
        "weight": batch.column("weight").flatten().to_pylist(),
    }
    letters = []
    for e, (place, why) in enumerate(zip(places, quarantined.reasons, strict=True)):
        value = originals.get(place) or orjson.dumps({name: column[e] for name, column in known.items()})
        reason = Reason("quarantined", f"quarantined: training step {step} was refused ({why})")
        topic, topic_id = source.came_from(place)
        letters.append(DeadLetter(reason, topic, *place, value, topic_id))
    return letters


def describe_places(batch: pa.RecordBatch) -> str:
    """The positions of a batch's events in the log, for an error that ends the run."""
    partition_N = batch.column("partition").to_numpy()
    found: dict[int, list[int]] = {}
    for partition, offsets in zip(partition_N.tolist(), batch.column("offset").to_pylist(), strict=True):
        found.setdefault(partition, []).extend(offsets)
    said = (f"partition {p}, offsets {min(at)} to {max(at)}" for p, at in sorted(found.items()))
    return "; ".join(said) or "no events of this rank"


def _target_times(batch: pa.RecordBatch) -> list[int]:
    context_N, times = batch.column("context_length").to_pylist(), batch.column("times_ms").to_pylist()
    return [t for context, row in zip(context_N, times, strict=True) for t in row[context:]]
