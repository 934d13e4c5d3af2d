"""The end of a command, after its verb."""

import os
import subprocess
import sys

import pytest

# A verb whose libraries leave a thread that does not end, as Ray's clients can.
CODE = """
import sys, threading, time, types
import deploy.cli
from deploy.entry import main

def verb():
    threading.Thread(target=time.sleep, args=(300,)).start()
    print("all is saved")
    raise SystemExit({status})

deploy.cli.main = verb
sys.modules["ray"] = types.ModuleType("ray")
main()
"""


@pytest.mark.parametrize("status", [0, 143])
def test_a_verb_that_used_ray_ends_at_once_with_its_status_whatever_threads_are_left(status):
    command = [sys.executable, "-c", CODE.format(status=status)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (status, "all is saved\n"), done.stderr


def test_output_that_nobody_takes_is_no_success():
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as gone:
        gone.wait()
        done = subprocess.run(
            [sys.executable, "-c", CODE.format(status=0)],
            env={**os.environ, "PYTHONUNBUFFERED": ""},
            stdout=gone.stdin,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
