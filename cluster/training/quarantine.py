"""Events of a training step that was refused: their originals go to the dead-letter topic, training goes on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import orjson
import pyarrow as pa

from cluster.training.candidates import Runs
from streaming.dead_letter import DeadLetter
from streaming.position import EventSource, RowPlace

_SHOWN = 3


class PoisonedTraining(RuntimeError):
    """Step after step was refused: the fault is not in a few events."""


def poisoned(steps: int, step: int, losses: Mapping[str, float], topic: str) -> PoisonedTraining:
    """The error to raise after so many refused steps one after another."""
    said = ", ".join(f"{name} {value:g}" for name, value in list(losses.items())[:_SHOWN])
    return PoisonedTraining(
        f"{steps} training steps one after another gave losses or gradients that are not finite (step {step}: {said}); "
        f"their events are in the topic {topic!r}. The model itself may be at fault: lower train.learning_rate or "
        "train.row_learning_rate and go on from an earlier checkpoint, or raise train.max_poison_batches."
    )


def quarantine_letters(
    batch: pa.RecordBatch, source: EventSource, topic: str, step: int, losses: Mapping[str, float]
) -> list[DeadLetter]:
    """A dead letter for each target of a training batch (DESIGN.md 3.2).

    Args:
        batch: what the refused step should have learnt.
        source: gives the originals; where it cannot any more, what the batch knows of the event stands in.
        topic: where the events were read.
        step: of the optimizer.
        losses: what it gave.
    """
    runs = Runs.of(batch)
    partition_E = batch.column("partition").to_numpy()[runs.run_E].tolist()
    offset_E, row_E = (batch.column(name).flatten().to_pylist() for name in ("offset", "row"))
    places = [RowPlace(*place) for place in zip(partition_E, offset_E, row_E, strict=True)]
    originals = source.originals(places)
    said = ", ".join(f"{name} {value:g}" for name, value in losses.items() if not np.isfinite(value))
    reason = f"quarantined: training step {step} was refused ({said or 'a gradient'} is not finite)"
    known = {
        "user_id": runs.user_N[runs.run_E].tolist(),
        "item_id": runs.targets_E.tolist(),
        "timestamp_ms": _target_times(batch),
        "weight": batch.column("weight").flatten().to_pylist(),
    }
    letters = []
    for e, place in enumerate(places):
        value = originals.get(place) or orjson.dumps({name: column[e] for name, column in known.items()})
        letters.append(DeadLetter(reason, topic, *place, value))
    return letters


def _target_times(batch: pa.RecordBatch) -> list[int]:
    context_N, times = batch.column("context_length").to_pylist(), batch.column("times_ms").to_pylist()
    return [t for context, row in zip(context_N, times, strict=True) for t in row[context:]]
