"""Some events of a training batch: each keeps its history, and events left out remain in the history."""

import numpy as np
import pytest

from cluster.training.steps.candidates import Runs
from streaming.batches.selection import event_rows, select_events
from streaming.events.schema import TRAINING_BATCH_SCHEMA
from tests.support.training_batches import Run, random_runs, to_batch

RUNS = [
    Run(
        5,
        [1, 2],
        [3, 4, 5, 6],
        seen=[1, 2, 9],
        attributes=(1, 2),
        weights=[1.0, 2.0, 3.0, 4.0],
        negatives=(7,),
    ),
    Run(6, [], [8, 9], partition=1, attributes=(3, 4)),
    Run(7, [5], [4], attributes=(0, 4)),
]


def test_a_row_is_cut_where_an_event_is_left_out_and_goes_on_with_it_as_history():
    rows = select_events(to_batch(RUNS), np.array([True, False, True, True, False, False, True])).to_pylist()
    assert [(r["user_id"], r["items"], r["context_length"]) for r in rows] == [
        (5, [1, 2, 3], 2),
        (5, [1, 2, 3, 4, 5, 6], 4),
        (7, [5, 4], 1),
    ]
    assert [r["events_before"] for r in rows] == [2, 4, 1]
    assert [r["times_ms"] for r in rows] == [[1000, 1001, 1002], [*range(1000, 1006)], [1000, 1001]]
    assert [r["offset"] for r in rows] == [[0], [2, 3], [2000]]
    assert [r["weight"] for r in rows] == [[1.0], [3.0, 4.0], [1.0]]
    assert [r["seen"] for r in rows] == [[1, 2, 9], [1, 2, 9], []]
    assert [r["attributes"] for r in rows] == [[1, 2], [1, 2], [0, 4]]
    assert [r["negatives"] for r in rows] == [[7], [7], []]


def _events(batch):
    """What is true of each event by itself."""
    runs, rows = Runs.of(batch), batch.to_pylist()
    found, k_of_row = [], {}
    for target, n in zip(runs.targets_E.tolist(), event_rows(batch).tolist(), strict=True):
        k = k_of_row[n] = k_of_row.get(n, -1) + 1
        row = rows[n]
        history = row["items"][: row["context_length"] + k]
        place = row["events_before"] - row["context_length"]  # of the first token: names it for random views
        found.append(
            (
                target,
                history,
                place,
                row["events_before"] + k,
                row["offset"][k],
                row["weight"][k],
                row["seen"],
            )
        )
    return found


@pytest.mark.parametrize("seed", range(5))
def test_every_kept_event_has_the_history_the_keys_and_the_weight_that_it_has_in_the_whole_batch(seed):
    rng = np.random.default_rng(seed)
    batch = to_batch(random_runs(rng, rows=20, items=30)).slice(3, 14)
    every = _events(batch)
    keep_E = rng.random(len(every)) < 0.6
    chosen = select_events(batch, keep_E)
    assert chosen.schema == TRAINING_BATCH_SCHEMA
    chosen.validate(full=True)
    assert _events(chosen) == [event for event, kept in zip(every, keep_E, strict=True) if kept]


def test_all_events_are_the_batch_itself_and_none_are_a_batch_without_rows():
    batch = to_batch(RUNS)
    assert select_events(batch, np.ones(7, bool)) is batch
    nothing = select_events(batch, np.zeros(7, bool))
    assert (nothing.num_rows, nothing.schema) == (0, TRAINING_BATCH_SCHEMA)
