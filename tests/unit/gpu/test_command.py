"""`python -m tests.gpu` reports all results, even if some checks crash."""

import sys
import time

import pytest

from tests.gpu import __main__ as command
from tests.gpu.log import BROKEN, Log

CHILD = """
import os, sys
from pathlib import Path
from tests.gpu.log import Log
log = Log(Path(sys.argv[1]))
for name, end in {plan}.items():
    if name in log.begun():
        continue
    log.add(begun=name)
    if end == "crash":
        os.abort()
    if end == "hang":
        import time; time.sleep(600)
    log.add(ended=name, test=name, outcome=end, seconds=0.1, why="")
    if end == "failed":
        os._exit({broken})
"""


def _outcomes(monkeypatch, tmp_path, plan, seconds=60.0):
    script = CHILD.format(plan=plan, broken=BROKEN)
    log = Log(tmp_path / "log")
    run = [sys.executable, "-c", script, str(log.path)]
    monkeypatch.setattr(command, "child", lambda *_: run)
    command.in_children("tests", log, time.monotonic() + seconds)
    return {e["test"]: (e["outcome"], e["why"]) for e in log.entries() if "test" in e}


def test_a_crash_costs_the_test_that_it_happened_in(monkeypatch, tmp_path):
    plan = {"tests/gpu/a": "passed", "tests/gpu/b": "crash", "tests/gpu/c": "failed", "tests/gpu/d": "passed"}
    found = _outcomes(monkeypatch, tmp_path, plan)
    assert {name: outcome for name, (outcome, _) in found.items()} == {
        "tests/gpu/a": "passed",
        "b": "failed",
        "tests/gpu/c": "failed",
        "tests/gpu/d": "passed",
    }
    assert "ended with status -6" in found["b"][1]


def test_one_that_hangs_is_killed_and_the_rest_goes_on(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "_LATEST_S", 6.0)
    found = _outcomes(monkeypatch, tmp_path, {"a": "hang", "b": "passed"}, seconds=0.0)
    assert found["a"] == ("failed", "it did not end in time and was killed")
    assert found["b"][0] == "passed"


def test_a_process_that_cannot_start_is_reported_once(monkeypatch, tmp_path):
    log = Log(tmp_path / "log")
    monkeypatch.setattr(command, "child", lambda *_: [sys.executable, "-c", "raise SystemExit(3)"])
    command.in_children("figures", log, time.monotonic() + 60)
    assert log.entries() == [{"ended": None, "why": "its process ended with status 3", "figure": "figures"}]


@pytest.mark.parametrize("kind", ["tests", "figures"])
def test_the_real_child_is_this_python(kind, tmp_path):
    assert command.child(kind, Log(tmp_path / "log"), 1.0)[:4] == [
        sys.executable,
        "-m",
        "tests.gpu.child",
        kind,
    ]
