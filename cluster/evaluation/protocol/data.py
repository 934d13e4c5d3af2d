"""A data set at rest, ready for an evaluation: catalogue, sequences, split, ranked items."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.protocol.interactions import Interactions, by_user, catalogue_of, event_columns
from cluster.evaluation.protocol.protocols import ProtocolError, Split, split
from streaming.arrays import Float32Array, Int64Array
from streaming.catalogue.catalogue import Catalogue
from streaming.events.schema import ACTION, VALUE, WEIGHT
from streaming.events.signals import judge_signals
from streaming.events.validation import without_empty

# The order of events with equal times must be the same for all systems and seeds, because the test depends on it.
_TIES_SEED = 0


@dataclass(frozen=True)
class Tables:
    """A data set as deploy.datasets.datasets reads it."""

    name: str
    interactions: pa.Table
    """user_id, item_id, timestamp_ms; optionally action, value, weight and pos."""
    items: pa.Table
    """item_id, title, categories."""
    users: pa.Table
    """user_id and a text column per attribute."""

    def fingerprint(self) -> str:
        """A hash of all values, hexadecimal."""
        digest = hashlib.sha256()
        for table in (self.interactions, self.items, self.users):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
                writer.write_table(table.replace_schema_metadata(None).combine_chunks())
            digest.update(memoryview(sink.getvalue()))
        return digest.hexdigest()


@dataclass(frozen=True)
class EvaluationData:
    """One data set under one protocol."""

    catalogue: Catalogue
    split: Split
    item_ids: Int64Array
    """int64 (I,), ascending: every item of the events, all of which are ranked."""

    @property
    def interactions(self) -> Interactions:
        """All events by user."""
        return self.split.interactions


def prepare(tables: Tables, config: OfflineConfig) -> EvaluationData:
    """Sorts, signs and splits a data set.

    Args:
        tables: the data set.
        config: `stream` defines positives, `protocol` the split.
    Raises:
        ProtocolError: it cannot be split in this way.
    """
    events = event_columns(tables.interactions, *signals(tables.interactions, config))
    if not (events.sign_N > 0).any():
        raise ProtocolError(
            f"none of the {tables.interactions.num_rows} events is a positive, so there is nothing to predict "
            "(settings: stream.positive_actions, stream.negative_actions, stream.negative_below_value)"
        )
    catalogue = catalogue_of(tables.items, tables.users, events.item_N, config.stream)
    interactions = by_user(events, catalogue, shuffle_ties=config.protocol.shuffle_ties, seed=_TIES_SEED)
    return EvaluationData(catalogue, split(interactions, config.protocol), np.unique(events.item_N))


def signals(interactions: pa.Table, config: OfflineConfig) -> tuple[npt.NDArray[np.int8], Float32Array]:
    """Sign and weight of every event, as on the stream; missing columns have no effect.

    Raises:
        ProtocolError: the stream would refuse a weight.
    """
    rows, names = interactions.num_rows, interactions.column_names
    absent = {
        ACTION: pa.nulls(rows, pa.string()),
        VALUE: pa.nulls(rows, pa.float32()),
        WEIGHT: pa.array(np.ones(rows, np.float32)),
    }
    columns = {
        name: interactions[name].combine_chunks().cast(default.type) if name in names else default
        for name, default in absent.items()
    }
    columns[ACTION] = without_empty(columns[ACTION])
    columns[WEIGHT] = columns[WEIGHT].fill_null(np.float32(1.0))
    sign_N, weight_N = judge_signals(pa.RecordBatch.from_pydict(columns), config.stream)
    limit = config.stream.max_weight
    unfit_N = ~((weight_N > 0) & (weight_N <= limit))
    if unfit_N.any():
        first = columns[WEIGHT][int(np.flatnonzero(unfit_N)[0])].as_py()
        raise ProtocolError(
            f"{int(unfit_N.sum()):,} of {rows:,} events have a {WEIGHT} that is not above 0 and at most {limit:g}, "
            f"alone or times that of their action, the first {first:g} "
            "(settings: stream.max_weight, stream.action_weights)"
        )
    return sign_N, weight_N
