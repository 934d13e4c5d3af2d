"""The black-box campaign in short: one round by the command itself, as `make chaos MODE=black-box` starts it.

A Ray that was started by `ray start`, a broker, a stream in both wire forms with hostile messages, `freshet train` of
which a worker, then Kafka, then the command itself is killed; then both counts. The other strikes are the campaign's.
"""

import itertools
import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(1800)

STRIKES = ["worker", "broker", "driver"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("black-box")
    options = {
        "--script": ",".join(STRIKES),
        "--replayed": "2000",
        "--replay-seconds": "10",
        "--report": str(folder / "report.json"),
        "--folder": str(folder / "rounds"),
    }
    command = [sys.executable, "-m", "tests.chaos.black_box", *itertools.chain(*options.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "report.json").read_text())


def test_whatever_is_killed_no_event_of_any_user_is_lost_or_doubled(report):
    assert report["by_fault"] == dict.fromkeys(STRIKES, 1)
    assert (report["lost"], report["doubled"]) == (0, 0)
    assert report["problems"] == []
    [played] = report["rounds"]
    assert played["events"] >= 4000
    assert {"json", "arrow"} <= set(played["messages"])


def test_the_count_of_the_command_is_that_of_the_consumer(report):
    [played] = report["rounds"]
    audit = played["audit"]
    assert audit["exactly_once"]
    assert (audit["events_in_topic"], audit["users"]) == (played["events"], played["users"])


def test_hostile_messages_are_dead_letters_and_nothing_else_is(report):
    [played] = report["rounds"]
    assert min(played["hostile"].values()) >= 1
    assert played["dead_letters"] == sum(played["hostile"].values())
