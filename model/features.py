"""Turns a training batch and item ids into index tensors over the rows of one step.

Shape letters: N sequences (one per row of the batch), E events in them, I distinct items of the sequences plus the
padding item 0, K categories of an item, F user attributes, S distinct users, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from model.arrays import BoolArray, Int16Array, Int64Array
from model.config import ModelConfig
from model.key_index import KeyIndex, hash_keys
from model.token_rows import Reads, TokenRows, pack, reads_at, row_width
from model.transfer import to_device

Categories = Callable[[Int64Array], Int64Array]
"""int64 (n,) item ids to int64 (n, K) category ids, 0 where there is none."""

ITEM, CATEGORY, USER, ACTIVITY, SOURCE, SOURCE_CATEGORY = 0, 1, 2, 3, 4, 5
_FIRST_ATTRIBUTE = 16
_LAST_BUCKET = 20


def attribute_table(k: int) -> int:
    """The table of the k-th configured user attribute."""
    return _FIRST_ATTRIBUTE + k


def activity_bucket(events_before: Int64Array) -> Int64Array:
    """min(20, ⌊2 log2(max(1, n))⌋), where n is the number of the user's earlier events; int64, same shape."""
    # log2 of a power of two is exact in float64, so bucket borders are not rounded.
    steps = np.floor(2 * np.log2(np.maximum(1, events_before)))
    bucket: Int64Array = np.minimum(_LAST_BUCKET, steps).astype(np.int64)
    return bucket


class KeyCollector:
    """The unique (table, id) keys of one step, in order of arrival; key k has row k + 1 of `rows_UD`."""

    def __init__(self) -> None:
        self._index = KeyIndex()

    def __len__(self) -> int:
        return len(self._index)

    def add(self, table: int, ids: Int64Array, valid: BoolArray | None = None) -> Int64Array:
        """Rows of the ids, int64 of the same shape; 0, the zero padding row, where `valid` is false."""
        rows = np.zeros(ids.shape, np.int64)
        chosen = np.ones(ids.shape, np.bool_) if valid is None else valid
        wanted = np.ascontiguousarray(ids[chosen])
        rows[chosen] = self._index.add(np.full(wanted.shape[0], table, np.int16), wanted) + 1
        return rows

    def keys(self) -> tuple[Int16Array, Int64Array]:
        """Tables int16 (U,) and ids int64 (U,)."""
        tables, ids = self._index.keys()
        return tables, ids


@dataclass(frozen=True)
class QueryInputs:
    """N sequences with E events; an event's history is the tokens before it in its sequence."""

    history: TokenRows
    """The sequences; a token is an index of the distinct items."""
    negatives: TokenRows
    """The explicit negatives before each sequence; length 0 where there are none."""
    user_N: Tensor
    """int64, raw user id."""
    first_position_N: Tensor
    """int64, number of the user's events before the sequence's first token; identifies tokens for random numbers."""
    rows_IK: Tensor
    """int64, rows of each distinct item and of its categories, in this order; entry 0 is padding."""
    source_rows_IK: Tensor
    """int64, likewise for its source embeddings: 0 with model.source_items=0; without categories (K = 1) if
    model.source_categories is off."""
    sequence_E: Tensor
    """int64, which sequence an event is in."""
    position_E: Tensor
    """int64, how many tokens of that sequence are the event's history."""
    reads: Reads
    """Location of the last model.history_length items of that history."""
    user_E: Tensor
    user_row_E: Tensor
    """int64, row of the user id's embedding; 0 with model.user_id_embedding off."""
    activity_row_E: Tensor
    attribute_row_EF: Tensor
    group_E: Tensor
    """int64, hash of the attribute values at the event; events with equal ones are not contrastive negatives."""
    weight_E: Tensor
    """float32."""
    key_E: Tensor
    """int64, hash of the event's place in the log."""
    anchor_sequence_S: Tensor
    """int64, the last sequence of each distinct user."""
    anchor_event_S: Tensor
    """int64, the last event of each distinct user."""

    @property
    def item_row_I(self) -> Tensor:
        """int64, row of each distinct item."""
        return self.rows_IK[:, 0]

    def to(self, device: torch.device | str) -> QueryInputs:
        """The same on a device."""
        return to_device(self, device)


@dataclass(frozen=True)
class ItemInputs:
    """C items to encode."""

    id_C: Tensor
    """int64, raw item id, for keyed randomness."""
    item_row_C: Tensor
    category_row_CK: Tensor
    is_target_C: Tensor
    """bool, whether the item is a target of the global step (and not only a uniform negative)."""
    target_T: Tensor
    """int64, positions of the targets: indexing by the mask would make the host wait for the device."""

    def to(self, device: torch.device | str) -> ItemInputs:
        """The same on a device."""
        return to_device(self, device)


def item_inputs(
    item_ids: Int64Array, categories: Categories, keys: KeyCollector, is_target: BoolArray | None = None
) -> ItemInputs:
    """Candidates or a slice of the catalogue.

    Args:
        item_ids: int64 (C,), distinct.
        categories: of items.
        keys: collects the rows that are needed.
        is_target: bool (C,); only training reads it.
    """
    category_CK = categories(item_ids)
    flags_C = np.zeros(item_ids.shape, np.bool_) if is_target is None else is_target
    return ItemInputs(
        id_C=_tensor(item_ids),
        item_row_C=_tensor(keys.add(ITEM, item_ids)),
        category_row_CK=_tensor(keys.add(CATEGORY, category_CK, category_CK != 0)),
        is_target_C=torch.from_numpy(np.array(flags_C, np.bool_)),
        target_T=torch.from_numpy(np.flatnonzero(flags_C)),
    )


def query_inputs(
    batch: pa.RecordBatch, categories: Categories, keys: KeyCollector, config: ModelConfig
) -> QueryInputs:
    """Index tensors of a training batch (docs/reference/batch.md).

    To encode a user's next query, pass a row of the last W items and a placeholder item of any id; an event's state
    never sees its own item.

    Args:
        batch: one row per run; the events are `items[context_length:]`.
        categories: of items.
        keys: collects the rows that are needed.
        config: reads `user_id_embedding`, `source_items`, `history_before`.
    Raises:
        ValueError: rows with different numbers of user attributes.
    """
    rows = _Rows.of(batch)
    negative_items, negative_length_N = (
        rows.older_halves() if config.negative_sequence == "older_half" else _negatives(batch)
    )
    ids = np.concatenate([rows.items, negative_items])
    distinct = KeyIndex(ids.shape[0])
    token_T = distinct.add(np.zeros(ids.shape[0], np.int16), ids) + 1
    ids_I = np.concatenate([np.zeros(1, np.int64), distinct.keys()[1]])
    valid_I = np.arange(ids_I.shape[0]) > 0
    category_IK = categories(ids_I[1:])
    category_IK = np.concatenate([np.zeros((1, category_IK.shape[1]), np.int64), category_IK])
    history_T = rows.within_T if config.history_before == "event" else rows.before_its_time(batch)
    sequence_E, position_E = rows.row_T[rows.is_event_T], history_T[rows.is_event_T]
    activity_E = rows.events_before_N[sequence_E] + position_E - rows.context_N[sequence_E]
    bucket_E = activity_bucket(activity_E)
    attribute_NF = _attributes(batch)
    anchor_sequence_S, anchor_event_S = _anchors(rows.user_N, sequence_E)
    items = rows.items.shape[0]
    source_category_IK = (
        category_IK if config.source_items and config.source_categories else category_IK[:, :0]
    )
    # Equal widths, so that one pass encodes both.
    width = max(map(row_width, (rows.length_N, negative_length_N)))
    history = pack(token_T[:items], rows.length_N, width)
    places = (_tensor(sequence_E), _tensor(position_E))
    return QueryInputs(
        history=history,
        negatives=pack(token_T[items:], negative_length_N, width),
        user_N=_tensor(rows.user_N),
        first_position_N=_tensor(rows.events_before_N - rows.context_N),
        rows_IK=_bags(keys, (ITEM, CATEGORY), ids_I, valid_I, category_IK),
        source_rows_IK=_bags(
            keys, (SOURCE, SOURCE_CATEGORY), ids_I, valid_I & (config.source_items > 0), source_category_IK
        ),
        sequence_E=places[0],
        position_E=places[1],
        reads=reads_at(history, *places, config.history_length),
        user_E=_tensor(rows.user_N[sequence_E]),
        user_row_E=_tensor(_user_rows(rows.user_N, keys, config)[sequence_E]),
        activity_row_E=_tensor(keys.add(ACTIVITY, bucket_E)),
        attribute_row_EF=_tensor(_attribute_rows(attribute_NF, keys)[sequence_E]),
        group_E=_tensor(_groups(attribute_NF, rows.user_N, sequence_E, bucket_E, config)),
        weight_E=torch.from_numpy(np.array(_values(batch, "weight"), np.float32)),
        key_E=_tensor(_event_keys(batch, sequence_E)),
        anchor_sequence_S=_tensor(anchor_sequence_S),
        anchor_event_S=_tensor(anchor_event_S),
    )


@dataclass(frozen=True)
class _Rows:
    """NumPy views of the ragged columns; T tokens of all rows."""

    items: Int64Array
    length_N: Int64Array
    context_N: Int64Array
    events_before_N: Int64Array
    user_N: Int64Array
    row_T: Int64Array
    within_T: Int64Array
    is_event_T: BoolArray

    @staticmethod
    def of(batch: pa.RecordBatch) -> _Rows:
        length_N = _lengths(batch, "items")
        starts_N = np.cumsum(length_N) - length_N
        context_N = _column(batch, "context_length")
        within_T = np.arange(int(length_N.sum())) - np.repeat(starts_N, length_N)
        return _Rows(
            items=_values(batch, "items"),
            length_N=length_N,
            context_N=context_N,
            events_before_N=_column(batch, "events_before"),
            user_N=_column(batch, "user_id"),
            row_T=np.repeat(np.arange(length_N.shape[0]), length_N),
            within_T=within_T,
            is_event_T=within_T >= np.repeat(context_N, length_N),
        )

    def before_its_time(self, batch: pa.RecordBatch) -> Int64Array:
        """Number of tokens of a token's row that come before all tokens of the same time, int64 (T,)."""
        times_T = _values(batch, "times_ms").astype(np.int64)
        first_T = (self.within_T == 0) | (np.diff(times_T, prepend=times_T[:1]) != 0)
        place_T = np.maximum.accumulate(np.where(first_T, np.arange(times_T.shape[0]), 0))
        return self.within_T[place_T]

    def older_halves(self) -> tuple[Int64Array, Int64Array]:
        """The older half of each row with at least four items, one row after another, and the number of each."""
        half_N = np.where(self.length_N >= 4, self.length_N // 2, 0)
        return self.items[self.within_T < half_N[self.row_T]], half_N


def _bags(
    keys: KeyCollector,
    tables: tuple[int, int],
    ids_I: Int64Array,
    valid_I: BoolArray,
    category_IK: Int64Array,
) -> Tensor:
    """Rows of items and of their categories side by side, int64 (I, 1 + K)."""
    item_row_I = keys.add(tables[0], ids_I, valid_I)
    category_row_IK = keys.add(tables[1], category_IK, category_IK != 0)
    return _tensor(np.concatenate([item_row_I[:, None], category_row_IK], axis=1))


def _tensor(values: Int64Array) -> Tensor:
    # A copy, because Arrow's buffers are read-only and torch would share them.
    return torch.from_numpy(np.array(values, np.int64))


def _column(batch: pa.RecordBatch, name: str) -> Int64Array:
    return cast("Int64Array", batch.column(name).to_numpy(zero_copy_only=False).astype(np.int64))


def _values(batch: pa.RecordBatch, name: str) -> npt.NDArray[Any]:
    return cast("npt.NDArray[Any]", batch.column(name).flatten().to_numpy(zero_copy_only=False))


def _lengths(batch: pa.RecordBatch, name: str) -> Int64Array:
    lengths: Int64Array = np.diff(batch.column(name).offsets.to_numpy()).astype(np.int64)
    return lengths


def _anchors(user_N: Int64Array, sequence_E: Int64Array) -> tuple[Int64Array, Int64Array]:
    """The last row and the last event of each distinct user: one contrastive anchor per user."""
    event_user_E = user_N[sequence_E]
    _, from_end_S = np.unique(event_user_E[::-1], return_index=True)
    anchor_event_S = event_user_E.shape[0] - 1 - from_end_S
    return sequence_E[anchor_event_S], anchor_event_S


def _user_rows(user_N: Int64Array, keys: KeyCollector, config: ModelConfig) -> Int64Array:
    return keys.add(USER, user_N) if config.user_id_embedding else np.zeros_like(user_N)


def _attributes(batch: pa.RecordBatch) -> Int64Array:
    """The user attributes of each row, int64 (N, F)."""
    counts_N = _lengths(batch, "attributes")
    width = int(counts_N.max(initial=0))
    if not np.all(counts_N == width):
        raise ValueError(
            f"training rows with different numbers of user attributes: {np.unique(counts_N).tolist()}; "
            "all must have one per name in stream.user_attributes"
        )
    return _values(batch, "attributes").astype(np.int64).reshape(counts_N.shape[0], width)


def _attribute_rows(attribute_NF: Int64Array, keys: KeyCollector) -> Int64Array:
    """Rows of the user attributes, int64 (N, F); an unknown value (0) is the zero row."""
    rows_NF = np.zeros_like(attribute_NF)
    for k in range(attribute_NF.shape[1]):
        rows_NF[:, k] = keys.add(attribute_table(k), attribute_NF[:, k], attribute_NF[:, k] != 0)
    return rows_NF


def _groups(
    attribute_NF: Int64Array,
    user_N: Int64Array,
    sequence_E: Int64Array,
    bucket_E: Int64Array,
    config: ModelConfig,
) -> Int64Array:
    """Hash of the attribute tower's input for each event, int64 (E,)."""
    columns = [*attribute_NF.T, user_N] if config.user_id_embedding else [*attribute_NF.T]
    mixed_N = np.zeros(user_N.shape[0], np.int64)
    for k, column_N in enumerate(columns):
        mixed_N = hash_keys(np.full(user_N.shape[0], k, np.int16), mixed_N ^ column_N).view(np.int64)
    return hash_keys(bucket_E.astype(np.int16), mixed_N[sequence_E]).view(np.int64)


def _negatives(batch: pa.RecordBatch) -> tuple[Int64Array, Int64Array]:
    """The explicit negatives before each row: their items, and how many there are, int64 (N,)."""
    if "negatives" not in batch.schema.names:
        return np.zeros(0, np.int64), np.zeros(batch.num_rows, np.int64)
    return _values(batch, "negatives").astype(np.int64), _lengths(batch, "negatives")


def _event_keys(batch: pa.RecordBatch, sequence_E: Int64Array) -> Int64Array:
    """Hash of (partition, offset, row), int64 (E,)."""
    partition_E = _column(batch, "partition")[sequence_E].astype(np.int16)
    offset_E = _values(batch, "offset").astype(np.int64)
    within_message = hash_keys(_values(batch, "row").astype(np.int16), offset_E).view(np.int64)
    return hash_keys(partition_E, within_message).view(np.int64)
