"""The Ray that a driver uses: the cluster at an address, or an own instance that only this machine can reach."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import ray_constants, services
from ray._private import utils as ray_utils
from ray._private.node import Node

from cluster.launching import idle_agent, ray_logging
from cluster.launching.processes import Process, descendants, kill_all

LOOPBACK = "127.0.0.1"
_ESSENTIAL = ("gcs_server", "raylet")


def loopback_variables() -> dict[str, str]:
    """Environment that keeps the ranks' own connections on this machine's loopback interface."""
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    return {"GLOO_SOCKET_IFNAME": names[0], "NCCL_SOCKET_IFNAME": names[0]} if names else {}


class RayInstance:
    """A started or joined Ray; the thread that creates it must live until `close`.

    An own instance ends with that thread, also if the driver is killed. Its processes do not receive the signals that a
    terminal, `timeout` or a service manager sends to the driver's process group; the driver decides when they end.
    """

    def __init__(self, *, own: bool, processes: list[Process], shared: bool = False) -> None:
        self.own = own
        self._shared = shared
        self._essential = [process for process in processes if process.name in _ESSENTIAL]
        self._others = {process.pid for process in descendants(os.getpid())} - {p.pid for p in processes}
        self._seen: list[Process] = []

    @staticmethod
    def present() -> RayInstance:
        """The instance that this process already uses; `close` does not end it."""
        return RayInstance(own=False, processes=[], shared=True)

    @staticmethod
    def join(**arguments: Any) -> RayInstance:
        """Join the cluster that RAY_ADDRESS or the argument `address` names."""
        with _own_handlers(), ray_logging.joining():
            ray.init(**arguments)
        return RayInstance(own=False, processes=[])

    @staticmethod
    def start(cpus: int, *, runtime_env: Mapping[str, Any] | None = None, **arguments: Any) -> RayInstance:
        """Start one on this machine with at least this many CPUs; all its servers listen on the loopback address."""
        # A token for this run only: otherwise Ray would write one to the home folder permanently, and every later
        # `ray start` would require it.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        wanted = dict(runtime_env or {})
        wanted["env_vars"] = {**loopback_variables(), **wanted.get("env_vars", {})}
        before = {process.pid for process in descendants(os.getpid())}
        quietly = ray_logging.starting_own_instance()
        with (
            _without_signals(),
            _own_handlers(),
            _unreachable_from_outside(),
            _without_unused_servers(),
            quietly,
        ):
            ray.init(
                address="local",  # otherwise it would try to join what a `ray start` on this machine has recorded
                num_cpus=max(os.cpu_count() or 1, cpus),
                include_dashboard=False,
                runtime_env=wanted,
                # Ray would start a worker a CPU before it knows the environment that a run's workers have.
                _system_config={"prestart_worker_first_driver": False, "enable_worker_prestart": False},
                _node_ip_address=LOOPBACK,
                **arguments,
            )
        return RayInstance(own=True, processes=[p for p in descendants(os.getpid()) if p.pid not in before])

    @property
    def missing(self) -> str:
        """The name of an essential process of an own instance that has ended; else empty."""
        return next((process.name for process in self._essential if not process.alive), "")

    def close(self) -> None:
        """Leave Ray; an own instance ends with all its processes."""
        if self._shared:
            return
        processes = self._processes()
        if self.own:
            _end_without_delay()
        ray.shutdown()
        kill_all(processes)

    def kill(self) -> None:
        """End an own instance at once, even if another thread still uses it."""
        kill_all(self._processes())

    def _processes(self) -> list[Process]:
        """What an own instance has started; also what is no longer below this process, because its parent has ended.

        While one thread is in `ray.shutdown`, which ends the raylet, another may call `kill`.
        """
        below = descendants(os.getpid()) if self.own else []
        found = [process for process in below if process.pid not in self._others]
        self._seen = list(dict.fromkeys([*self._seen, *found]))
        return self._seen


def _end_without_delay() -> None:
    # `ray.shutdown` waits a second for each of five processes after SIGTERM, which they block (see _without_signals).
    node: Any = ray._private.worker._global_node
    for started in node.all_processes.values() if node is not None else ():
        for info in started:
            info.process.terminate = info.process.kill


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Keep our SIGTERM handlers; Ray's end the process with status 15, or print a stack and abort.

    The one in C++ can only be replaced afterwards, on the main thread; a driver in another thread leaves this to the
    main thread (cluster/launching/driver.py).
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    install, ray_utils.set_sigterm_handler = ray_utils.set_sigterm_handler, lambda handler: None
    try:
        yield
    finally:
        ray_utils.set_sigterm_handler = install
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _unreachable_from_outside() -> Iterator[None]:
    """Keep Ray from replacing the loopback address by one that other machines can reach."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _without_unused_servers() -> Iterator[None]:
    """Without the autoscaler and the head of a dashboard that is off, and with an agent of it that does nothing."""

    def python_of(component: str, *arguments: Any, **settings: Any) -> list[str]:
        if component == ray_constants.PROCESS_TYPE_DASHBOARD_AGENT:
            return [sys.executable, "-I", "-S", idle_agent.__file__]  # what follows are arguments
        return list(usual_python(component, *arguments, **settings))

    usual_python = services._build_python_executable_command_memory_profileable
    replaced: list[tuple[Any, str, Any]] = [
        (Node, "start_monitor", lambda node, **arguments: None),
        (Node, "start_api_server", lambda node, **arguments: None),
        (services, usual_python.__name__, python_of),
        # It imports the dashboard, only to choose an argument of the agent.
        (ray_utils, "get_dashboard_dependency_error", lambda: None),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    for owner, name, replacement in replaced:
        setattr(owner, name, replacement)
    try:
        yield
    finally:
        for owner, name, usual in before:
            setattr(owner, name, usual)


@contextmanager
def _without_signals() -> Iterator[None]:
    """Block SIGINT and SIGTERM; processes started in the block, and their children, inherit this."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
