"""SIGTERM and Ctrl-C in separate processes: exit statuses, and the effect of a second Ctrl-C."""

import os
import signal
import subprocess
import sys
import time

import pytest

WAIT = """
import sys, time
from cluster.stop_request import StopRequest
from deploy.command.sigterm import ask_on_signals, stop_on_signals
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


SLOW_IMPORT = """
import sys, time
import deploy.entry
class Slow:
    def find_spec(self, name, *_):
        if name == "deploy.cli":
            print("ready", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
sys.argv = ["freshet", *{arguments}]
deploy.entry.main()
"""


def run_entry(code, number):
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout.readline() == b"ready\n"
        os.kill(child.pid, number)
        out, err = child.communicate(timeout=20)
    assert (out, err) == (b"", b"")
    return child.returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_command_line_is_imported_ends_with_the_verbs_own_status(number):
    for arguments in (["train"], ["broker", "--port", "0"]):
        assert run_entry(SLOW_IMPORT.format(arguments=arguments), number) == 0
    for arguments in (["refresh"], ["submit", "train"], []):
        assert run_entry(SLOW_IMPORT.format(arguments=arguments), number) == 128 + number


WORK = """
import sys, time, types
import deploy.entry
fake = sys.modules["deploy.cli"] = types.ModuleType("deploy.cli")
def main():
    {work}
fake.main = main
sys.argv = ["freshet", "status"]
{around}
"""


def test_a_verb_without_handlers_of_its_own_ends_with_128_and_the_signal_and_no_traceback():
    code = WORK.format(work="print('ready', flush=True); time.sleep(60)", around="deploy.entry.main()")
    assert run_entry(code, signal.SIGINT) == 130
    assert run_entry(code, signal.SIGTERM) == 143


def test_a_signal_after_the_verb_has_ended_does_not_change_its_status():
    around = "try:\n    deploy.entry.main()\nfinally:\n    print('ready', flush=True); time.sleep(60)"
    for status, expected in (("3", 3), ("'a text'", 1), ("None", 0)):
        code = WORK.format(work=f"raise SystemExit({status})", around=around)
        assert run_entry(code, signal.SIGTERM) == expected


def test_the_status_stays_when_a_library_turns_the_exit_into_another():
    # Ray's calls do, where the handler runs inside them.
    code = """
import sys, time
from deploy.command.sigterm import stop_on_signals
with stop_on_signals():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except SystemExit:
        sys.exit(1)
"""
    assert run_entry(code, signal.SIGTERM) == 143
