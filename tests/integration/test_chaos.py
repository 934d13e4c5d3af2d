"""Kill it anywhere, below Ray: the same worker loop and process groups, a real broker, 45 faults of every kind."""

import pytest

from streaming.broker import LocalBroker
from tests.chaos.campaign import Campaign
from tests.chaos.faults import COMMIT_POINTS


@pytest.mark.timeout(900)
def test_whatever_is_killed_and_whenever_the_state_at_the_end_is_that_of_an_undisturbed_run(tmp_path):
    with LocalBroker(tmp_path / "kafka") as broker:
        report = Campaign(broker, tmp_path, seed=7).run(45)
    assert report.kills == 45
    assert report.differences == [[]] * report.runs
    assert (report.events_lost, report.events_doubled) == (0, 0)
    assert report.resumed >= 30
    struck = {f"commit {point}" for point, _ in COMMIT_POINTS}
    struck |= {"worker", "all", "driver", "broker", "enospc", "truncate", "bitflip"}
    assert set(report.by_target) == struck
