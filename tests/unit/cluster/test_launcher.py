"""What the launcher asks Ray Train for."""

import pytest

from cluster.config import TrainConfig
from cluster.launcher import _scaling


@pytest.mark.parametrize(("workers", "asked"), [(2, 2), ("2", 2), ("2..2", 2), ("1..3", (1, 3))])
def test_one_number_is_a_group_of_that_size_and_a_range_an_elastic_one(workers, asked):
    assert _scaling(TrainConfig(workers=workers), use_gpu=False).num_workers == asked


def test_how_often_the_size_is_considered_is_a_setting():
    scaling = _scaling(TrainConfig(workers="1..3", resize_check_s=7.0), use_gpu=False)
    assert scaling.elastic_resize_monitor_interval_s == 7.0
