"""Which processes end with an own instance."""

import os
import signal
import subprocess
import sys

import pytest

from cluster.launching.processes import descendants
from cluster.launching.ray_instance import RayInstance

# Starts a process below itself, says which, and waits until it is killed.
PARENT = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"


@pytest.fixture
def tree():
    """A parent and the id of its child, both running."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    yield parent, child
    parent.kill()
    parent.wait()


def test_a_process_whose_parent_has_ended_ends_with_the_instance_too(tree):
    parent, child = tree
    started = [process for process in descendants(os.getpid()) if process.pid in (parent.pid, child)]
    instance = RayInstance(own=True, processes=started)
    [orphan] = [process for process in instance._processes() if process.pid == child]  # as `close` begins
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert orphan.alive
    instance.kill()
    assert not orphan.alive


def test_what_ran_before_the_instance_is_left_alone(tree):
    parent, _ = tree
    instance = RayInstance(own=True, processes=[])
    instance.kill()
    assert parent.poll() is None
