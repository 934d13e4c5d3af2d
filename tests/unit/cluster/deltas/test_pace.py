"""How far apart deltas are."""

import pytest

from cluster.deltas.pace import Pace


def test_cheap_deltas_come_as_often_as_set():
    pace = Pace(0.5, 0.05)
    assert pace.interval_s == 0.5
    pace.cost(0.02)
    assert pace.interval_s == 0.5


def test_dear_deltas_come_less_often_and_take_the_set_share_of_a_core():
    pace = Pace(0.5, 0.05)
    for _ in range(20):
        pace.cost(0.1)
    assert pace.interval_s == pytest.approx(2.0)
    assert 0.1 / pace.interval_s == pytest.approx(0.05)


def test_one_dear_delta_counts_for_half_and_less_later():
    pace = Pace(0.5, 0.05)
    pace.cost(0.02)
    pace.cost(0.22)
    assert pace.interval_s == pytest.approx(0.12 / 0.05)
    for _ in range(10):
        pace.cost(0.02)
    assert pace.interval_s == 0.5
