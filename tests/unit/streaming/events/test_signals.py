"""Which events are targets, which explicit negatives, and with what weight."""

import numpy as np
import pyarrow as pa
import pytest

from streaming.config import StreamConfig
from streaming.events.signals import judge_signals


def _rows(actions, values=None, weights=None, kind=None):
    n = len(actions)
    return pa.RecordBatch.from_arrays(
        [
            pa.array(actions, kind or pa.string()),
            pa.array(values or [None] * n, pa.float32()),
            pa.array(weights or [1.0] * n, pa.float32()),
        ],
        names=["action", "value", "weight"],
    )


def _judge(rows, **settings):
    sign_N, weight_N = judge_signals(rows, StreamConfig(**settings))
    assert (sign_N.dtype, weight_N.dtype) == (np.int8, np.float32)
    return sign_N.tolist(), weight_N.tolist()


def test_by_default_every_event_is_a_positive_with_its_own_weight():
    rows = _rows(["buy", None, "skip"], [1.0, None, -3.0], [2.0, 1.0, 0.5])
    assert _judge(rows) == ([1, 1, 1], [2.0, 1.0, 0.5])


def test_positive_actions_leave_out_the_others_but_not_events_without_an_action():
    assert _judge(_rows(["buy", "look", None, ""]), positive_actions=["buy"])[0] == [1, 0, 1, 0]


def test_negative_actions_are_negatives_and_the_others_stay_positives():
    assert _judge(_rows(["skip", "buy", None]), negative_actions=["skip"])[0] == [-1, 1, 1]


def test_a_low_value_is_a_negative_whatever_the_action_and_no_value_is_not_low():
    rows = _rows(["rate", "rate", None, "look", "rate", "rate"], [2.5, 3.0, 1.0, 0.0, None, float("nan")])
    signs, _ = _judge(rows, negative_below_value=3.0, positive_actions=["rate"])
    assert signs == [-1, 1, -1, -1, 1, 1]


def test_the_weight_of_an_action_multiplies_that_of_the_event():
    rows = _rows(["buy", "cart", "look", None], weights=[2.0, 2.0, 2.0, 3.0])
    weights = _judge(rows, action_weights=["buy=1.5", "cart=0.5"])[1]
    assert weights == [3.0, 1.0, 2.0, 3.0]


def test_an_action_may_hold_an_equals_sign():
    assert _judge(_rows(["a=b"]), action_weights=["a=b=2"]) == ([1], [2.0])


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_other_kinds_of_strings_are_judged_alike_sliced_or_not(kind):
    actions = ["skip", "buy", None, "skip", "look"]
    rows = _rows(actions).set_column(0, "action", pa.array(actions).cast(kind))
    settings = {"positive_actions": ["buy"], "negative_actions": ["skip"]}
    assert _judge(rows, **settings)[0] == [-1, 1, 1, -1, 0]
    assert _judge(rows.slice(2, 3), **settings)[0] == [1, -1, 0]


def test_no_events_have_no_signs():
    settings = {"negative_actions": ["skip"], "action_weights": ["buy=2"], "negative_below_value": 1.0}
    assert _judge(_rows([]), **settings) == ([], [])
