"""Batches taken while the previous step is computed: the run is bit-identical to one without this."""

from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
import torch

from cluster.collectives import Collectives
from cluster.config import TrainConfig
from cluster.training.control import Report, decide
from cluster.training.intake.taking import BatchTaker
from cluster.training.steps.guarded_step import GuardedStep
from cluster.training.steps.train_step import query_inputs  # type: ignore[attr-defined]
from tests.support.device_runs import config_of, differing, state_of
from tests.support.unit_runs import CPU, QUOTA, open_run

STEPS = 5
_BAD_USER = 7


def _raising(batch, *arguments):
    if (batch.column("user_id").to_numpy() == _BAD_USER).any():
        raise KeyError("a user of whom nothing can be made")
    return query_inputs(batch, *arguments)


def _trained(*, ahead, bad=False):
    """A run after some steps, how many of its batches were taken ahead, and what was trained and quarantined."""
    run = open_run(config_of("the defaults", dropout=0.2))
    taker = BatchTaker(run, QUOTA)
    guarded = GuardedStep(run.train_step, Collectives(), CPU, run.progressive)
    meanwhile = partial(taker.take_ahead, run.train_step) if ahead else (lambda: None)
    early, found = 0, []
    with patch("cluster.training.steps.train_step.query_inputs", _raising if bad else query_inputs):
        for step in range(STEPS):
            early += taker.in_hand
            outcome = guarded.train(taker.next(), step, meanwhile)
            run.ledger.add_batch(outcome.trained)
            quarantined = outcome.quarantined.batch if outcome.quarantined is not None else None
            if quarantined is not None:
                run.ledger.add_quarantined(quarantined)
            found.append((outcome.trained, quarantined, outcome.losses, outcome.validation.tolist()))
    return run, early, found


@pytest.mark.parametrize("bad", [False, True])
def test_the_run_is_the_same_bit_for_bit_refused_steps_included(bad):
    plain, none, wanted = _trained(ahead=False, bad=bad)
    run, early, found = _trained(ahead=True, bad=bad)
    assert (none, early) == (0, STEPS - 1)
    assert found == wanted
    assert any(quarantined is not None for _, quarantined, _, _ in found) is bad
    assert differing(state_of(plain), state_of(run)) == []
    for partition, ledger in plain.ledger.partitions.items():
        assert run.ledger.partitions[partition].sums == ledger.sums


def test_of_a_batch_in_hand_the_ledger_knows_nothing_and_its_rows_are_counted_apart():
    run = open_run(config_of("the defaults"))
    taker = BatchTaker(run, QUOTA)
    first = taker.next()
    negatives = run.ledger.negatives
    taker.take_ahead(run.train_step)
    assert (taker.in_hand, taker.rows_in_hand) == (True, 2 * QUOTA)
    assert run.ledger.negatives == negatives
    taker.take_ahead(run.train_step)  # a step that is tried again
    assert run.batcher.rows_read == 4 * QUOTA
    second = taker.next()
    assert not taker.in_hand
    assert run.ledger.negatives > negatives
    assert not second.equals(first)


def test_what_goes_wrong_ahead_is_raised_when_its_step_begins():
    run = open_run(config_of("the defaults"))
    taker = BatchTaker(run, QUOTA)
    with patch.object(run.batcher, "next_batch", side_effect=OSError("lost")):
        taker.take_ahead(run.train_step)
    assert taker.in_hand
    with pytest.raises(OSError, match="lost"):
        taker.next()


def test_inputs_read_ahead_are_those_of_that_batch_alone():
    run = open_run(config_of("the defaults"))
    one, other = run.batcher.next_batch(QUOTA), run.batcher.next_batch(QUOTA)
    run.train_step.read_ahead(one)
    prepared = run.train_step.prepare(other, 0)
    np.testing.assert_array_equal(prepared.runs.items, run.train_step.prepare(other, 0).runs.items)
    assert torch.equal(prepared.queries.user_row_E, run.train_step.prepare(other, 0).queries.user_row_E)


def test_every_rank_takes_ahead_or_none_and_only_for_a_step_alone():
    ready = Report(ready_rows=5, batch_full=1, two_full=1)
    assert decide([ready, ready], TrainConfig()).ahead
    assert not decide([ready, Report(ready_rows=5, batch_full=1)], TrainConfig()).ahead
    assert decide([ready, ready], TrainConfig()).only_a_step
    for wish in ("catalogue_waiting", "checkpoint_due", "publish_due", "growth_found", "stop_asked"):
        asked = Report(ready_rows=5, batch_full=1, two_full=1, **{wish: 1})
        assert not decide([asked, ready], TrainConfig()).only_a_step, wish
    written = Report(checkpoint_ready=1)
    assert not decide([written, written], TrainConfig()).only_a_step
