"""How far apart deltas are."""

import pytest

from cluster.deltas.pace import Pace


def pace_after(*costs_s):
    pace = Pace(0.5, 0.05)
    for cost_s in costs_s:
        pace.cost(cost_s)
    return pace


def test_cheap_deltas_come_as_often_as_set():
    assert pace_after().interval_s == 0.5
    assert pace_after(0.02, 0.02).interval_s == 0.5


def test_dear_deltas_come_less_often_and_take_the_set_share_of_a_core():
    pace = pace_after(0.1, 0.1, 0.1)
    assert pace.interval_s == pytest.approx(2.0)
    assert 0.1 / pace.interval_s == pytest.approx(0.05)


def test_what_the_first_delta_of_a_process_loads_and_compiles_does_not_count():
    assert pace_after(5.0).interval_s == 0.5
    assert pace_after(5.0, 0.1).interval_s == pytest.approx(2.0)


def test_two_dear_deltas_of_five_change_nothing():
    assert pace_after(0.02, 0.02, 0.02, 0.02, 5.0, 5.0).interval_s == 0.5


def test_the_interval_follows_a_machine_that_becomes_slower_or_faster():
    assert pace_after(*[0.02] * 9, *[0.1] * 3).interval_s == pytest.approx(2.0)
    assert pace_after(*[0.1] * 9, *[0.02] * 3).interval_s == 0.5
