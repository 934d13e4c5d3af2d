"""The chaos campaign in short, without Ray: the worker loop and its process groups, a real broker, 67 faults of all
kinds, and 8 that change the number of ranks. Run by the command itself, like `make chaos`."""

import json
import os
import signal

import pytest

from tests.chaos.campaign import SIZES, Campaign, _kill, main
from tests.chaos.faults import COMMIT_POINTS, DELTA_POINTS, PUBLISH_POINTS, Fault
from tests.chaos.verdict import DiedOfItself

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    told = tmp_path_factory.mktemp("chaos") / "report.json"
    assert main(["--kills", "67", "--rank-changes", "8", "--seed", "7", "--report", str(told)]) == 0
    return json.loads(told.read_text())


def test_whatever_is_killed_and_whenever_the_state_at_the_end_is_that_of_an_undisturbed_run(report):
    assert report["kills"] == sum(report["by_target"].values()) == 67
    assert report["digests_equal"], report["differences"]
    struck = {f"commit {point}" for point, _ in COMMIT_POINTS}
    struck |= {f"{target} {point}" for target in ("publish", "refresh") for point, _ in PUBLISH_POINTS}
    struck |= {f"delta {point}" for point, _ in DELTA_POINTS}
    struck |= {"worker", "all", "driver", "broker", "enospc", "truncate", "bitflip"}
    assert set(report["by_target"]) == struck


def test_a_group_that_goes_on_with_another_number_of_ranks_has_the_histories_of_an_undisturbed_run(report):
    assert report["rank_changes"] == 8
    assert report["resumed"] >= 40 + 8
    assert report["log_parts_equal"], report["differences"]
    assert {size for change in report["by_sizes"] for size in change.split(" to ")} == set(map(str, SIZES))


def test_no_event_is_lost_and_none_doubled(report):
    assert (report["events_lost"], report["events_doubled"]) == (0, 0)
    assert report["passed"]


def test_keys_were_admitted_and_expired_and_were_evicted_and_waited_in_what_was_compared(report):
    assert set(report["limits"]) == {"expired", "evicted", "waiting", "rows"}
    assert all(count >= 10 for count in report["limits"].values()), report["limits"]


def test_a_group_that_dies_by_an_exception_ends_the_campaign_with_the_path_of_its_log(kafka_broker, tmp_path):
    campaign = Campaign(kafka_broker, tmp_path, seed=8)
    config = campaign._config("run")
    # No checkpoint to go on from verifies.
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(DiedOfItself, match=rf"none of the 1 checkpoints.*{tmp_path}/run/rank-\*\.log"):
        campaign._attempt(config, 0, Fault("worker", "step", rank=1), 2)


def test_a_victim_that_is_gone_meanwhile_is_no_error():
    alive, gone = (os.posix_spawn("/bin/sleep", ["sleep", "60"], {}) for _ in range(2))
    os.kill(gone, signal.SIGKILL)
    os.waitpid(gone, 0)
    assert [_kill(pid) for pid in (gone, alive)] == [False, True]
    assert os.waitpid(alive, 0)[1] == signal.SIGKILL
