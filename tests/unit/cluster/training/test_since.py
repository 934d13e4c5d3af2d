"""Whether there is anything new for another checkpoint or version."""

from cluster.training.control import Report
from cluster.training.since import Since


def test_an_idle_run_makes_one_checkpoint_and_one_version_of_what_there_is():
    since = Since()
    assert since.unsaved
    assert since.unpublished
    since.trained(3)
    since.seen(Report(figures={"rows_read": 10}))
    since.saving()
    since.saved()
    since.published()
    since.trained(3)
    since.seen(Report(ready_rows=2, figures={"rows_read": 10, "lag_messages": 7}))
    assert not since.unsaved
    assert not since.unpublished


def test_a_step_a_row_without_a_step_and_a_change_of_the_catalogue_are_each_something_new():
    since = Since()

    def up_to_date():
        since.saving()
        since.saved()
        since.published()
        assert not since.unsaved
        assert not since.unpublished

    up_to_date()
    since.trained(1)
    since.seen(Report(figures={"rows_read": 5}))
    assert since.unsaved
    assert since.unpublished
    up_to_date()
    # A negative: nothing was trained, but histories and positions moved.
    since.seen(Report(figures={"rows_read": 6}))
    assert since.unsaved
    assert not since.unpublished
    up_to_date()
    since.catalogue_changed()
    assert since.unsaved
    assert since.unpublished


def test_a_checkpoint_that_was_not_committed_leaves_what_it_was_to_hold_unsaved():
    since = Since()
    since.trained(1)
    since.seen(Report(figures={"rows_read": 5}))
    since.saving()
    assert since.unsaved
    since.trained(2)
    since.seen(Report(figures={"rows_read": 9}))
    since.saved()
    assert since.unsaved
