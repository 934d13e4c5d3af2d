"""The program that takes the place of the dashboard's agent: it imports nothing, and ends with the raylet."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import ray._raylet
from ray._private import ray_constants, services

from cluster.launching import idle_agent
from cluster.launching.processes import descendants
from cluster.launching.ray_instance import _without_unused_servers

RAYLET: Any = ray._raylet
PORTS = (
    RAYLET.DASHBOARD_AGENT_LISTEN_PORT_NAME,
    RAYLET.METRICS_AGENT_PORT_NAME,
    RAYLET.METRICS_EXPORT_PORT_NAME,
)
NODE_ID = "5" * 56
AGENT = ray_constants.PROCESS_TYPE_DASHBOARD_AGENT
# Starts what it is given, says which process that is, and waits until it is killed.
PARENT = "import subprocess, sys, time; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); time.sleep(60)"


def python_of(component, folder):
    return services._build_python_executable_command_memory_profileable(component, str(folder))


def test_the_agent_stores_the_ports_for_which_the_raylet_waits_and_ends_with_it(tmp_path):
    with _without_unused_servers():
        command = [
            *python_of(AGENT, tmp_path),
            "dashboard/agent.py",
            f"--session-dir={tmp_path}",
            f"--node-id={NODE_ID}",
        ]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *command], stdout=subprocess.PIPE, text=True
    ) as raylet:
        pid = int(raylet.stdout.readline())
        [agent] = [process for process in descendants(os.getpid()) if process.pid == pid]
        stored = [tmp_path / RAYLET.get_port_filename(NODE_ID, port) for port in PORTS]
        until(lambda: all(path.exists() for path in stored))
        assert {path.read_text() for path in stored} == {"-1"}
        assert agent.alive
        raylet.send_signal(signal.SIGKILL)
    until(lambda: not agent.alive)


def test_the_agent_takes_the_place_of_no_other_process_and_only_while_an_own_instance_starts(tmp_path):
    usual = python_of(AGENT, tmp_path)
    with _without_unused_servers():
        assert python_of(ray_constants.PROCESS_TYPE_RUNTIME_ENV_AGENT, tmp_path) == usual
        assert python_of(AGENT, tmp_path) == [sys.executable, "-I", "-S", idle_agent.__file__]
    assert python_of(AGENT, tmp_path) == usual


def until(holds, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
