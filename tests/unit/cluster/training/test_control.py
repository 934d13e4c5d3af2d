"""The ranks' common decisions from their reports."""

from dataclasses import replace

import pytest

from cluster.config import TrainConfig
from cluster.observability.figures import SUMMED
from cluster.training.control import Report, decide


def test_a_live_step_waits_for_a_full_batch_or_for_the_linger():
    half = Report(ready_rows=5)
    assert not decide([half, half], TrainConfig()).step
    assert decide([replace(half, linger_over=1), half], TrainConfig()).step
    assert decide([replace(half, batch_full=1)] * 2, TrainConfig()).step


def test_a_bounded_step_never_depends_on_the_clock():
    half = Report(ready_rows=5, linger_over=1)
    assert not decide([half, half], TrainConfig(bounded=True)).step
    assert decide([replace(half, batch_full=1)] * 2, TrainConfig(bounded=True)).step


def test_a_rank_without_events_takes_part_in_the_step_of_the_others():
    assert decide([Report(batch_full=1), Report(ready_rows=3, batch_full=1)], TrainConfig()).step


def test_a_run_ends_when_every_rank_has_read_its_share_to_the_end():
    done = Report(finished=1)
    assert not decide([done, Report()], TrainConfig(bounded=True)).stop
    assert not decide([done, replace(done, ready_rows=1)], TrainConfig(bounded=True)).stop
    assert decide([done, done], TrainConfig(bounded=True)).stop


def test_a_run_ends_at_the_row_that_it_was_told_to_end_at():
    config = TrainConfig(stop_after_rows=100)
    read_49, read_50 = (Report(figures={"rows_read": rows}) for rows in (49, 50))
    assert not decide([read_50, read_49], config).stop
    assert decide([read_50, read_50], config).stop


def test_what_ranks_exchange_is_every_number_by_its_name():
    one = Report(ready_rows=5, failed=1, figures={"rows_read": 7, "events_quarantined": 2})
    again = Report.decoded(one.encoded())
    assert again == one
    assert again.figures.keys() == set(SUMMED)
    totals = decide([one, replace(one, ready_rows=1)], TrainConfig()).totals
    assert (totals.ready_rows, totals.failed) == (6, 2)
    assert (totals.figures["rows_read"], totals.figures["events_quarantined"]) == (14, 4)
    assert totals.figures["dead_letters"] == 0


def test_a_figure_that_is_not_declared_cannot_be_reported():
    with pytest.raises(AssertionError, match="events_lost"):
        Report(figures={"events_lost": 1})


def test_only_the_clock_of_rank_0_decides_on_checkpoints_and_versions():
    wish = Report(checkpoint_due=1, publish_due=1)
    ignored = decide([Report(), wish], TrainConfig())
    assert (ignored.checkpoint, ignored.publish) == (False, False)
    heeded = decide([wish, Report()], TrainConfig())
    assert (heeded.checkpoint, heeded.publish) == (True, True)


def test_a_stop_that_rank_0_was_asked_for_ends_the_run_before_its_end_and_begins_nothing_more():
    asked = Report(stop_asked=1, checkpoint_due=1, publish_due=1, ready_rows=5)
    decision = decide([asked, Report(ready_rows=5)], TrainConfig())
    assert (decision.stop, decision.asked) == (True, True)
    assert (decision.checkpoint, decision.publish) == (False, False)
    assert not decide([Report(), asked], TrainConfig()).stop


def test_a_run_that_has_read_all_finishes_also_when_it_is_asked_to_stop():
    done = Report(finished=1, stop_asked=1)
    decision = decide([done, done], TrainConfig(bounded=True))
    assert (decision.stop, decision.asked) == (True, False)
