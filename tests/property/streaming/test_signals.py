"""Signals and negatives against one event at a time."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.config import StreamConfig
from streaming.events.signals import judge_signals
from streaming.histories.event_store import EventStore
from streaming.histories.negatives import NegativeEvents, join_negatives

ACTIONS = st.sampled_from(["buy", "cart", "skip", "look", ""])
WEIGHTS = st.floats(0.125, 100.0, width=32)
NUMBERS = st.floats(-5.0, 5.0, width=32, allow_subnormal=False)
EVENT = st.tuples(st.none() | ACTIONS, st.none() | NUMBERS, NUMBERS)


@st.composite
def stream_configs(draw):
    """Settings that name each action at most once as positive or negative."""
    kinds = draw(st.dictionaries(ACTIONS.filter(bool), st.sampled_from(["positive", "negative"])))
    positive = [action for action, kind in kinds.items() if kind == "positive"]
    negative = [action for action, kind in kinds.items() if kind == "negative"]
    weighted = positive or [action for action in ("buy", "cart", "skip") if action not in negative]
    weights = (
        {action: draw(WEIGHTS) for action in draw(st.sets(st.sampled_from(weighted)))} if weighted else {}
    )
    return StreamConfig(
        positive_actions=positive,
        negative_actions=negative,
        action_weights=[f"{action}={weight}" for action, weight in weights.items()],
        negative_below_value=draw(st.just(0.0) | st.floats(0.125, 4.0, width=32)),
    )


def _sign(action, value, config):
    below = config.negative_below_value
    if action in config.negative_actions or (below > 0 and value is not None and value < below):
        return -1
    return int(action is None or not config.positive_actions or action in config.positive_actions)


@settings(deadline=None)
@given(st.lists(EVENT, max_size=30), stream_configs())
def test_signs_and_weights_are_those_of_one_event_at_a_time(events, config):
    columns = list(zip(*events, strict=True)) or [[], [], []]
    kinds = {"action": pa.string(), "value": pa.float32(), "weight": pa.float32()}
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds.values(), strict=True)]
    sign_N, weight_N = judge_signals(pa.RecordBatch.from_arrays(arrays, names=list(kinds)), config)
    assert sign_N.tolist() == [_sign(action, value, config) for action, value, _ in events]
    factors = [np.float32(config.weight_of_action.get(action, 1.0)) for action, _, _ in events]
    expected = [np.float32(weight) * factor for (_, _, weight), factor in zip(events, factors, strict=True)]
    assert weight_N.tolist() == expected


# One batch: user and item of each event, None instead of an item where the event is the first target of a row.
BATCH = st.lists(st.tuples(st.integers(0, 4), st.none() | st.integers(0, 99)), max_size=50)


@settings(max_examples=60, deadline=None)
@given(st.lists(BATCH, max_size=5), st.integers(1, 40))
def test_each_row_knows_the_last_negatives_that_its_user_gave_before_it(batches, retained):
    store, past = EventStore(retained, with_times=False), {}
    for batch in batches:
        expected, negatives, rows = [], [], []
        for place, (user, item) in enumerate(batch):
            if item is None:
                rows.append((user, place))
                expected.append(past.get(user, [])[-retained:])
            else:
                negatives.append((user, user % 2, item, place))
                past.setdefault(user, []).append(item)
        user_M, partition_M, item_M, place_M = (
            np.array([e[k] for e in negatives], np.int64) for k in range(4)
        )
        user_B, place_B = (np.array([row[k] for row in rows], np.int64) for k in range(2))
        events = NegativeEvents(user_M, partition_M.astype(np.int32), item_M, place_M)
        items, offset_B = join_negatives(store, events, user_B, place_B)
        found = [items[a:b].tolist() for a, b in pairwise(offset_B)]
        assert found == expected
    assert len(store) == len(past)
    assert all(store.users_of(p).tolist() == sorted(u for u in past if u % 2 == p) for p in (0, 1))
