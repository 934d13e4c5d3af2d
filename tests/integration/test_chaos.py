"""Kill it anywhere, below Ray: the same worker loop and process groups, a real broker, 45 faults of every kind and 8
after which the number of ranks is another one."""

import pytest

from streaming.broker import LocalBroker
from tests.chaos.campaign import SIZES, Campaign
from tests.chaos.faults import COMMIT_POINTS

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chaos")
    with LocalBroker(folder / "kafka") as broker:
        return Campaign(broker, folder, seed=7).run(45, rank_changes=8)


def test_whatever_is_killed_and_whenever_the_state_at_the_end_is_that_of_an_undisturbed_run(report):
    assert report.kills == 45
    assert report.digests_equal, report.differences
    struck = {f"commit {point}" for point, _ in COMMIT_POINTS}
    struck |= {"worker", "all", "driver", "broker", "enospc", "truncate", "bitflip"}
    assert set(report.by_target) == struck


def test_a_group_that_goes_on_with_another_number_of_ranks_has_the_histories_of_an_undisturbed_run(report):
    assert report.rank_changes == 8
    assert report.resumed >= 30 + 8
    assert report.log_parts_equal, report.differences
    assert {size for change in report.by_sizes for size in change.split(" to ")} == set(map(str, SIZES))


def test_no_event_is_lost_and_none_doubled(report):
    assert (report.events_lost, report.events_doubled) == (0, 0)
    assert report.passed()
