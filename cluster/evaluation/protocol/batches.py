"""Training and query batches (docs/reference/batch.md) from a data set at rest.

Shape letters: U users, P pieces (ranges of a user's events that become rows), B rows of a batch, Q queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.protocol.interactions import Interactions
from cluster.evaluation.protocol.protocols import Queries, Split, Stage
from cluster.queries.query_batch import AFTER_ALL_MS
from streaming.arrays import Int64Array
from streaming.events.schema import TRAINING_BATCH_SCHEMA


@dataclass(frozen=True)
class _Pieces:
    """Ranges of users' events; the targets are [start, end), counted within the user's events."""

    user_P: Int64Array
    start_P: Int64Array
    end_P: Int64Array

    def take(self, chosen: Int64Array) -> _Pieces:
        return _Pieces(self.user_P[chosen], self.start_P[chosen], self.end_P[chosen])


@dataclass(frozen=True)
class PassSettings:
    """How training events are cut into the batches of a pass.

    Attributes:
        batch_targets: target events per batch; a batch may exceed it by its last piece.
        window: W, events of history before a piece, and maximum number of targets in a piece.
        mask_all: whether `seen` holds all training events of the user, later ones included.
        first_events: whether events without a history are targets.
        seed: of the orders.
    """

    batch_targets: int
    window: int
    mask_all: bool
    first_events: bool
    seed: int

    @classmethod
    def of(cls, config: OfflineConfig) -> PassSettings:
        """The settings in the configuration."""
        return cls(
            config.fit.batch_targets,
            config.model.history_length,
            config.model.history_mask == "all",
            config.fit.first_events,
            config.seed,
        )


class TrainingPasses:
    """Cuts the training events into batches with a constant number of targets, in a new order for each pass.

    Args:
        split: the training events.
        settings: how to cut them.
        stage: a stage of a walk-forward, to train on instead of the events before the split.
    """

    def __init__(self, split: Split, settings: PassSettings, stage: Stage | None = None) -> None:
        self._interactions, self._settings = split.interactions, settings
        self._train_U = stage.until_U if stage else split.train_U
        first_U = stage.before_U if stage else np.zeros_like(split.train_U)
        if not settings.first_events:
            first_U = np.maximum(first_U, 1)
        self._pieces = _pieces(self._train_U, settings.window, first_U)
        self.targets = int((self._pieces.end_P - self._pieces.start_P).sum())
        """Events to predict in a pass."""

    def steps(self) -> int:
        """Batches of a pass."""
        return max(1, -(-self.targets // self._settings.batch_targets))

    def batches(self, number: int) -> Iterator[pa.RecordBatch]:
        """The batches of pass `number`, a function of the number and the seed."""
        rng = np.random.default_rng([self._settings.seed, number])
        pieces = self._pieces.take(rng.permutation(self._pieces.user_P.shape[0]))
        ends = np.cumsum(pieces.end_P - pieces.start_P)
        wanted = np.arange(1, self.steps()) * self._settings.batch_targets
        cuts = np.searchsorted(ends, wanted, side="left") + 1
        for chosen in np.split(np.arange(ends.shape[0]), np.minimum(cuts, ends.shape[0])):
            if chosen.shape[0]:
                yield self._batch(pieces.take(chosen))

    def _batch(self, pieces: _Pieces) -> pa.RecordBatch:
        seen_end_P = self._train_U[pieces.user_P] if self._settings.mask_all else pieces.start_P
        return _rows(self._interactions, pieces, self._settings.window, seen_end_P, placeholder=False)


def query_batches(
    interactions: Interactions, queries: Queries, window: int, rows: int
) -> Iterator[pa.RecordBatch]:
    """Each query as one event with a placeholder item, in batches of at most `rows`."""
    for start in range(0, len(queries), rows):
        user_Q, cut_Q = queries.user_Q[start : start + rows], queries.cut_Q[start : start + rows]
        yield _rows(interactions, _Pieces(user_Q, cut_Q, cut_Q), window, cut_Q, placeholder=True)


def _pieces(train_U: Int64Array, longest: int, first_U: Int64Array) -> _Pieces:
    """Each user's events from the first one on, in ranges of at most `longest`."""
    targets_U = np.maximum(train_U - first_U, 0)
    count_U = -(-targets_U // longest)
    user_P = np.repeat(np.arange(train_U.shape[0]), count_U)
    number_P = np.arange(user_P.shape[0]) - np.repeat(np.cumsum(count_U) - count_U, count_U)
    start_P = first_U[user_P] + number_P * longest
    return _Pieces(user_P, start_P, np.minimum(start_P + longest, train_U[user_P]))


def _rows(
    interactions: Interactions, pieces: _Pieces, window: int, seen_end_B: Int64Array, *, placeholder: bool
) -> pa.RecordBatch:
    """One row per piece. `seen` are the user's first `seen_end_B` items."""
    rows = pieces.user_P.shape[0]
    base_B = interactions.offset_U1[pieces.user_P]
    context_B = np.minimum(pieces.start_P, window)
    from_B = base_B + pieces.start_P - context_B
    length_B = context_B + pieces.end_P - pieces.start_P
    items_at, offset_B1 = _stretches(from_B, length_B)
    items, times = interactions.item_T[items_at], interactions.time_T[items_at]
    targets_at, target_offset_B1 = _stretches(base_B + pieces.start_P, pieces.end_P - pieces.start_P)
    weights = interactions.weight_T[targets_at]
    if placeholder:
        # A query has one event, whose item is not read.
        items = np.insert(items, offset_B1[1:], 0)
        times = np.insert(times, offset_B1[1:], AFTER_ALL_MS)
        offset_B1 = offset_B1 + np.arange(rows + 1)
        targets_at, target_offset_B1 = np.zeros(rows, np.int64), np.arange(rows + 1)
        weights = np.ones(rows, np.float32)
    seen_at, seen_offset_B1 = _stretches(base_B, seen_end_B)
    negative_at, negative_offset_B1 = _negatives(interactions, pieces, window, before_target=not placeholder)
    width = interactions.attribute_UF.shape[1]
    columns = {
        "user_id": pa.array(interactions.user_U[pieces.user_P]),
        "items": _lists(offset_B1, items),
        "times_ms": _lists(offset_B1, times),
        "context_length": pa.array(context_B, pa.int32()),
        "events_before": pa.array(pieces.start_P),
        "attributes": _lists(
            np.arange(rows + 1) * width, interactions.attribute_UF[pieces.user_P].reshape(-1)
        ),
        "seen": _lists(seen_offset_B1, interactions.item_T[seen_at]),
        "partition": pa.array(np.zeros(rows, np.int32)),
        "offset": _lists(target_offset_B1, targets_at),
        "row": _lists(target_offset_B1, np.zeros(targets_at.shape[0], np.int32)),
        "append_ms": _lists(target_offset_B1, np.zeros(targets_at.shape[0], np.int64)),
        "weight": _lists(target_offset_B1, weights.astype(np.float32)),
        "negatives": _lists(negative_offset_B1, interactions.negative_item_X[negative_at]),
    }
    arrays = [columns[field.name] for field in TRAINING_BATCH_SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=TRAINING_BATCH_SCHEMA)


def _negatives(
    interactions: Interactions, pieces: _Pieces, window: int, *, before_target: bool
) -> tuple[Int64Array, Int64Array]:
    """The last W explicit negatives before each piece.

    With `before_target`, those between the piece's history and its first target are included. For a query they are not,
    because it is unknown whether they came before its time.
    """
    first_B = interactions.negative_offset_U1[pieces.user_P]
    # Places ascend within a user, so user and place form an ascending key.
    user_X = np.repeat(np.arange(interactions.user_U.shape[0]), np.diff(interactions.negative_offset_U1))
    span = int(max(interactions.negative_place_X.max(initial=0), pieces.start_P.max(initial=0))) + 2
    key_X = user_X * span + interactions.negative_place_X
    key_P = pieces.user_P * span + pieces.start_P
    end_B = np.searchsorted(key_X, key_P, side="right" if before_target else "left")
    start_B = np.maximum(first_B, end_B - window)
    return _stretches(start_B, end_B - start_B)


def _stretches(start_B: Int64Array, length_B: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Indices start, start + 1, … of all ranges, concatenated, and where each range begins among them, (B + 1,)."""
    offset_B1 = np.concatenate([[0], np.cumsum(length_B)]).astype(np.int64)
    return np.repeat(start_B - offset_B1[:-1], length_B) + np.arange(offset_B1[-1]), offset_B1


def _lists(offset_B1: Int64Array, values: npt.NDArray[np.generic]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offset_B1, pa.int32()), pa.array(values))
