"""The events of a packed batch as a row each: what training without prefix packing reads.

Shape letters: N rows of the packed batch, E events in them, T items of the new rows.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.training.steps.candidates import Runs

Int64Array = npt.NDArray[np.int64]


def per_event(batch: pa.RecordBatch, window: int) -> pa.RecordBatch:
    """The same events in the same order, each in a row of its own behind its last `window` items.

    What a packed row says once for all of its events (attributes, known items, explicit negatives) every row repeats,
    so both batches leave out the same negatives if the known items cover the row (model.history_mask=all).
    """
    runs = Runs.of(batch)
    before_E = _places(runs)
    context_E = np.minimum(before_E, window)
    item_at, offset_E1 = _stretches(runs.item_offsets_N1[runs.run_E] + before_E - context_E, context_E + 1)
    times = batch.column("times_ms").flatten().to_numpy()
    events_before_E = (
        batch.column("events_before").to_numpy()[runs.run_E] + before_E - runs.context_N[runs.run_E]
    )
    columns = {name: batch.column(name).take(pa.array(runs.run_E)) for name in _REPEATED}
    columns |= {name: _ones(batch.column(name)) for name in _PER_EVENT}
    columns |= {
        "items": pa.ListArray.from_arrays(pa.array(offset_E1, pa.int32()), pa.array(runs.items[item_at])),
        "times_ms": pa.ListArray.from_arrays(pa.array(offset_E1, pa.int32()), pa.array(times[item_at])),
        "context_length": pa.array(context_E, pa.int32()),
        "events_before": pa.array(events_before_E, pa.int64()),
    }
    return pa.RecordBatch.from_arrays([columns[field.name] for field in batch.schema], schema=batch.schema)


_REPEATED = ("user_id", "attributes", "seen", "partition", "negatives")
_PER_EVENT = ("offset", "row", "append_ms", "weight")


def _places(runs: Runs) -> Int64Array:
    """Items before each event in its packed row, int64 (E,)."""
    targets_N = np.diff(runs.item_offsets_N1) - runs.context_N
    first_N = np.cumsum(targets_N) - targets_N
    return runs.context_N[runs.run_E] + np.arange(runs.run_E.shape[0]) - first_N[runs.run_E]


def _stretches(start_E: Int64Array, length_E: Int64Array) -> tuple[Int64Array, Int64Array]:
    """start, start + 1, … of each stretch in turn, int64 (T,), and where each begins among them, (E + 1,)."""
    offset_E1 = np.concatenate([[0], np.cumsum(length_E)])
    return np.repeat(start_E - offset_E1[:-1], length_E) + np.arange(offset_E1[-1]), offset_E1


def _ones(column: pa.ListArray) -> pa.ListArray:
    """The lists' values, each in a list of its own."""
    values = column.flatten()
    return pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1), pa.int32()), values)
