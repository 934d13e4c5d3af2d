"""The proof from outside must be able to fail: what it takes for lost, doubled, badly ended or orphaned."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import pyarrow as pa
import pytest

from streaming.codecs.codec import decode_messages
from streaming.config import StreamConfig
from streaming.events.partitioner import partition_of_users
from streaming.events.validation import Place
from tests.chaos.black_box.__main__ import Report
from tests.chaos.black_box.commands import Command, problem_of_failure
from tests.chaos.black_box.counting import ALL, HOSTILE, Counts
from tests.chaos.black_box.feeding import partition_of
from tests.chaos.black_box.hostile import encoded, hostile_messages
from tests.chaos.black_box.processes import descendants, left_after
from tests.chaos.black_box.round import Plan, Result, plans
from tests.chaos.black_box.strikes import ENDS, GOES_ON
from tests.chaos.black_box.verdict import compare, read_used

TOPIC = {1: 10, 2: 5, 3: 1}


def test_equal_counts_are_no_problem():
    found = compare(TOPIC, dict(TOPIC), dead_letters=4, hostile=4)
    assert (found.events, found.users, found.lost, found.doubled) == (16, 3, 0, 0)
    assert found.problems() == []


@pytest.mark.parametrize(
    ("used", "lost", "doubled"),
    [
        (TOPIC | {1: 9}, 1, 0),
        (TOPIC | {2: 6}, 0, 1),
        ({1: 10, 2: 5}, 1, 0),
        (TOPIC | {4: 2}, 0, 2),
        # As many in all, of the wrong users.
        (TOPIC | {1: 9, 2: 6}, 1, 1),
    ],
    ids=["lost", "doubled", "a user who is missing", "a user who is nowhere", "one of each"],
)
def test_a_lost_and_a_doubled_event_are_found(used, lost, doubled):
    found = compare(TOPIC, used, dead_letters=0, hostile=0)
    assert (found.lost, found.doubled) == (lost, doubled)
    [said] = found.problems()
    assert said == f"{lost} events were lost and {doubled} doubled, of 16"


def test_a_missing_dead_letter_and_an_empty_topic_are_problems():
    assert compare(TOPIC, TOPIC, dead_letters=3, hostile=4).problems() == ["3 dead letters instead of 4"]
    assert "nothing was shown" in compare({}, {}, dead_letters=0, hostile=0).problems()[0]


def test_the_counter_decodes_both_wire_forms_and_leaves_out_what_is_marked():
    counts = Counts()
    counts.add(json.dumps({"user_id": 7, "item_id": 1, "timestamp_ms": 1}).encode(), [])
    three = encoded(pa.RecordBatch.from_pydict({"user_id": [7, 8, 8]}))
    counts.add(three, [("freshet-encoding", b"arrow")])
    counts.add(three, [("freshet-encoding", b"arrow"), (HOSTILE, b"0,2")])
    counts.add(b"nonsense", [(HOSTILE, ALL)])
    assert counts.by_user == {7: 2, 8: 3}
    assert counts.hostile == 3
    assert counts.messages == {"json": 2, "arrow": 2}


def test_what_the_audit_writes_is_read(tmp_path):
    (tmp_path / "used.csv").write_text('"user_id","events"\n-5,3\n7,1\n')
    assert read_used(tmp_path / "used.csv") == {-5: 3, 7: 1}


def test_users_go_where_freshet_reads_them():
    users = [0, 1, 42, 1299, 2**62]
    assert [partition_of(user, 4) for user in users] == partition_of_users(
        pa.array(users).to_numpy(), 4
    ).tolist()


def test_every_strike_comes_before_any_comes_again_and_the_last_one_of_a_round_ends_the_trainer():
    rounds = list(islice(plans(seed=3), 12))
    struck = [name for plan in rounds for name in plan.strikes[:-1]]
    assert set(struck[: len(GOES_ON)]) == set(GOES_ON)
    assert {plan.strikes[-1] for plan in rounds[: len(ENDS)]} == set(ENDS)
    assert {plan.shared_ray for plan in rounds} == {True, False}
    assert rounds == list(islice(plans(seed=3), 12))


PLAN = Plan(1, ("worker", "driver"), shared_ray=False)


def test_a_campaign_fails_by_a_problem_or_by_a_round_that_was_not_played():
    good = Result(PLAN, struck=["worker", "driver"], events=100)
    bad = Result(PLAN, lost=1, problems=["1 events were lost and 0 doubled, of 100"])
    assert Report(1, 2, [good, good]).passed()
    assert not Report(1, 2, [good]).passed()
    assert not Report(1, 2, [good, bad]).passed()
    said = json.loads(Report(1, 2, [good, bad]).text())
    assert (said["passed"], said["lost"], said["events"]) == (False, 1, 100)
    assert said["by_fault"] == {"worker": 1, "driver": 1}


ERROR = "import sys; print('freshet: error: no broker'); "


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (ERROR + "sys.exit(1)", ""),
        ("print('(RayTrainWorker pid=7) Traceback (most recent call last):'); " + ERROR + "sys.exit(1)", ""),
        ("raise KeyError", "with a traceback"),
        ("raise SystemExit(1)", "without one line"),
        (ERROR * 2 + "sys.exit(1)", "without one line"),
    ],
    ids=["one line", "what Ray passes on", "a traceback", "silence", "twice"],
)
def test_a_command_that_fails_must_say_why_in_one_line(tmp_path, code, problem):
    command = Command(tmp_path / "log", "python", "-c", code)
    assert command.wait(60) == 1
    said = problem_of_failure(command)
    assert (problem in said) if problem else said == ""


def test_a_process_that_is_left_is_found_and_one_that_ends_is_not():
    script = "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", script])
    try:
        while not (below := descendants(parent.pid)):
            assert parent.poll() is None
        [child] = below
        assert left_after([child], 0) == [child]
        os.kill(child, signal.SIGKILL)
        assert left_after([child], 30) == []
    finally:
        parent.kill()
        parent.wait()


def event_of(user):
    return {"user_id": user, "item_id": 5, "timestamp_ms": 1_700_000_000_000, "event_id": "e"}


HOME, OTHER = ([u for u in range(1000, 1300) if partition_of(u, 4) == p] for p in (0, 1))


@pytest.mark.parametrize(
    "one", hostile_messages(HOME, other_home=OTHER, event=event_of), ids=lambda one: one.kind
)
def test_a_hostile_message_comes_to_as_many_dead_letters_as_it_is_marked_with(one):
    message = SimpleNamespace(
        offset=3,
        timestamp=1_700_000_000_000,
        key=b"h",
        value=one.value,
        headers=[*one.headers, (HOSTILE, one.bad_rows)],
    )
    limits = StreamConfig()
    place = Place(
        *("t", 0, 4),
        max_future_ms=int(limits.max_future_s * 1000),
        max_message_bytes=limits.max_message_bytes,
        max_decoded_bytes=limits.max_decoded_bytes,
        max_message_rows=limits.max_message_rows,
        max_weight=limits.max_weight,
    )
    decoded = decode_messages([message], place)
    counts = Counts()
    counts.add(message.value, message.headers)
    assert len(decoded.dead) == counts.hostile >= 1
    assert Counter(decoded.rows["user_id"].to_pylist()) == counts.by_user
