"""SIGTERM and Ctrl-C in processes of their own: exit statuses, and what the second Ctrl-C does."""

import os
import signal
import subprocess
import sys
import time

import pytest

WAIT = """
import sys, time
from cluster.stop_request import StopRequest
from deploy.signals import ask_on_signals, stop_on_signals
request = StopRequest()
request.heeded = {heeded}
request.kill = lambda: print("killed", flush=True)
with {context}:
    print("ready", flush=True)
    while not request.asked:
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep({hangs})
sys.exit(request.status)
"""
ASK = "ask_on_signals(request, status=0)"


def run(context, *signals, heeded=True, hangs=0, apart_s=0.5):
    code = WAIT.format(context=context, heeded=heeded, hangs=hangs)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout.readline() == b"ready\n"
        for place, number in enumerate(signals):
            if place:
                time.sleep(apart_s)
            os.kill(child.pid, number)
        out, err = child.communicate(timeout=20)
    assert err == b""
    return child.returncode, out.decode().split()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_heeds_it_is_asked_and_ends_with_its_own_status(number):
    assert run(ASK, number) == (0, ["asked"])
    assert run("ask_on_signals(request)", number) == (128 + number, ["asked"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_before_a_run_heeds_it_the_verb_ends_at_once(number):
    assert run(ASK, number, heeded=False) == (0, [])
    assert run("stop_on_signals()", number) == (128 + number, [])
    assert run("stop_on_signals(status=0)", number) == (0, [])


def test_a_second_ctrl_c_ends_what_was_started_and_the_process_at_once():
    assert run(ASK, signal.SIGINT, signal.SIGINT, hangs=60) == (130, ["asked", "killed"])
    assert run(ASK, signal.SIGTERM, signal.SIGINT, hangs=60) == (130, ["asked", "killed"])


def test_one_press_that_arrives_twice_and_a_second_sigterm_are_no_second_ctrl_c():
    assert run(ASK, signal.SIGINT, signal.SIGINT, hangs=1, apart_s=0.02) == (0, ["asked"])
    assert run(ASK, signal.SIGTERM, signal.SIGTERM, hangs=1, apart_s=0.02) == (0, ["asked"])
