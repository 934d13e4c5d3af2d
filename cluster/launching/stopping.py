"""Carries a stop request from the driver's signal handler to the ranks, through Ray's key-value store.

The store is in Ray's head, so a request reaches every node without a shared folder or another process.
"""

from __future__ import annotations

import threading

import ray
from ray.experimental import internal_kv

from cluster.stop_request import StopRequest

_NAMESPACE = b"freshet"
_POLL_S = 0.2


class StopWatcher:
    """Checks for the request of one run from a thread of a rank."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._asked = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stop", daemon=True)
        self._thread.start()

    @property
    def asked(self) -> bool:
        """See control.StopNotice."""
        return self._asked

    def close(self) -> None:
        """See control.StopNotice."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._asked and not self._closed.wait(_POLL_S):
            self._asked = stop_is_asked(self._run_id)


def stop_is_asked(run_id: str) -> bool:
    """Whether the driver of a run has made a request; False while Ray's head does not answer, and without Ray."""
    if not internal_kv._internal_kv_initialized():  # type: ignore[no-untyped-call]
        return False
    try:
        return bool(internal_kv._internal_kv_exists(_key(run_id), namespace=_NAMESPACE))
    except (ray.exceptions.RayError, RuntimeError):
        return False


class HeadLine:
    """The driver's connection to Ray's head: writes the stop request, and counts the head's answers."""

    def __init__(self, run_id: str, stop: StopRequest) -> None:
        self._run_id, self._stop = run_id, stop
        self.answers = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ray head", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Remove the request and stop asking; called before Ray is left."""
        self._closed.set()
        self._thread.join(timeout=1.0)
        if self._stop.asked and not self._thread.is_alive():
            internal_kv._internal_kv_del(_key(self._run_id), namespace=_NAMESPACE)

    def _watch(self) -> None:
        told = False
        while not self._closed.wait(_POLL_S):
            try:
                if self._stop.asked and not told:
                    internal_kv._internal_kv_put(_key(self._run_id), b"1", namespace=_NAMESPACE)
                    told = True
                else:
                    internal_kv._internal_kv_exists(_key(self._run_id), namespace=_NAMESPACE)
            except (ray.exceptions.RayError, RuntimeError):
                continue  # the driver reacts to the duration of this
            self.answers += 1


def _key(run_id: str) -> bytes:
    return f"stop/{run_id}".encode()
