"""Training batches (docs/reference/batch.md) written by hand, or drawn at random."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from streaming.events.schema import TRAINING_BATCH_SCHEMA


@dataclass(frozen=True)
class Run:
    """One row: a user's history, the events to train on, and other data of the user."""

    user: int
    context: list[int]
    targets: list[int]
    seen: list[int] = field(default_factory=list)
    partition: int = 0
    offsets: list[int] | None = None
    weights: list[float] | None = None
    attributes: tuple[int, ...] = ()
    negatives: tuple[int, ...] = ()
    times: list[int] | None = None
    """Of context and targets; 1000, 1001, … unless given."""


def to_batch(runs: list[Run]) -> pa.RecordBatch:
    """Rows in TRAINING_BATCH_SCHEMA; offsets count from 1000 × row unless given."""
    columns: list[list[object]] = [[] for _ in TRAINING_BATCH_SCHEMA]
    for n, run in enumerate(runs):
        count = len(run.targets)
        row = (
            run.user,
            run.context + run.targets,
            run.times if run.times is not None else [1000 + k for k in range(len(run.context) + count)],
            len(run.context),
            len(run.context),
            list(run.attributes),
            run.seen,
            run.partition,
            run.offsets if run.offsets is not None else [1000 * n + k for k in range(count)],
            [0] * count,
            [5000] * count,
            run.weights if run.weights is not None else [1.0] * count,
            list(run.negatives),
        )
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, TRAINING_BATCH_SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=TRAINING_BATCH_SCHEMA)


def random_runs(rng: np.random.Generator, rows: int, items: int) -> list[Run]:
    """Rows of 0–6 context items, 1–5 targets and 0–8 seen items out of `items` ids."""
    return [
        Run(
            user,
            rng.integers(1, items + 1, rng.integers(0, 7)).tolist(),
            rng.integers(1, items + 1, rng.integers(1, 6)).tolist(),
            rng.integers(1, items + 1, rng.integers(0, 9)).tolist(),
        )
        for user in range(rows)
    ]
