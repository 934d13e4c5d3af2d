"""What an event says about the user's taste: a positive (a target), an explicit negative, or ignored.

Shapes: N events, K actions that the settings name.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streaming.arrays import Float32Array, Int8Array, Int32Array
from streaming.config import StreamConfig
from streaming.events.schema import ACTION, VALUE, WEIGHT

POSITIVE, IGNORED, NEGATIVE, DUPLICATE = 1, 0, -1, 2


def judge_signals(rows: pa.RecordBatch, config: StreamConfig) -> tuple[Int8Array, Float32Array]:
    """The sign and the weight of each event.

    An explicit negative has an action in `negative_actions` or a value below `negative_below_value`. Other events are
    positives if they have no action or one in `positive_actions`, or if that setting is empty. The rest is ignored.

    Args:
        rows: `action` (any kind of string), `value`, `weight` (never null), as in DECODED_SCHEMA.
        config: of the stream.
    Returns:
        sign int8 (n,): 1 positive, -1 explicit negative, 0 ignored; weight float32 (n,): the event's weight times its
        action's.
    """
    weight_N = rows[WEIGHT].to_numpy(zero_copy_only=False)
    sign_N = np.full(rows.num_rows, POSITIVE, np.int8)
    if named := _named_actions(config):
        code_N = _codes(rows[ACTION], named)
        sign_N = _sign_of_code(named, config)[code_N]
        weight_N = weight_N * _weight_of_code(named, config.weight_of_action)[code_N]
    if config.negative_below_value:
        is_low_N = pc.less(rows[VALUE], np.float32(config.negative_below_value))
        sign_N[pc.fill_null(is_low_N, False).to_numpy(zero_copy_only=False)] = NEGATIVE
    return sign_N, weight_N


def _named_actions(config: StreamConfig) -> list[str]:
    return sorted({*config.positive_actions, *config.negative_actions, *config.weight_of_action})


def _codes(actions: pa.Array, named: list[str]) -> Int32Array:
    """int32 (n,): the action's index in `named`, len(named) for any other action, len(named) + 1 for none."""
    if pa.types.is_dictionary(actions.type):
        actions = actions.dictionary_decode()
    place_N = pc.index_in(actions, value_set=pa.array(named, actions.type))
    code_N = pc.fill_null(place_N, len(named)).to_numpy(zero_copy_only=False)
    return np.where(actions.is_null().to_numpy(zero_copy_only=False), len(named) + 1, code_N)


def _sign_of_code(named: list[str], config: StreamConfig) -> Int8Array:
    """int8 (k + 2,)."""
    other = IGNORED if config.positive_actions else POSITIVE
    signs = dict.fromkeys(config.positive_actions, POSITIVE) | dict.fromkeys(
        config.negative_actions, NEGATIVE
    )
    return np.array([*(signs.get(action, other) for action in named), other, POSITIVE], np.int8)


def action_factors(actions: pa.Array, weight_of_action: Mapping[str, float]) -> Float32Array:
    """The factor of each event's weight that comes from its action, float32 (n,).

    Args:
        actions: any kind of string, (n,).
        weight_of_action: factors; any other action has 1.
    """
    named = sorted(weight_of_action)
    return _weight_of_code(named, weight_of_action)[_codes(actions, named)]


def _weight_of_code(named: list[str], weights: Mapping[str, float]) -> Float32Array:
    """float32 (k + 2,)."""
    return np.array([*(weights.get(action, 1.0) for action in named), 1.0, 1.0], np.float32)
