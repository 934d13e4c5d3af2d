"""A stop that was asked for, from the driver's signal handler to the ranks: by Ray's own key-value store.

The store is Ray's head, so a request arrives on every node, without a common folder and without another process.
"""

from __future__ import annotations

import threading

import ray
from ray.experimental import internal_kv

from cluster.stop_request import StopRequest

_NAMESPACE = b"freshet"
_POLL_S = 0.2


class StopWatcher:
    """Looks for the request of one run from a thread of a rank."""

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
    """Whether the driver of a run has put a request; False while Ray's head does not answer, and without Ray."""
    if not internal_kv._internal_kv_initialized():  # type: ignore[no-untyped-call]
        return False
    try:
        return bool(internal_kv._internal_kv_exists(_key(run_id), namespace=_NAMESPACE))
    except (ray.exceptions.RayError, RuntimeError):
        return False


class HeadLine:
    """The driver's line to Ray's head: puts the stop request there, and counts the head's answers."""

    def __init__(self, run_id: str, stop: StopRequest) -> None:
        self._run_id, self._stop = run_id, stop
        self.answers = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ray head", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take the request away and ask no more; before Ray is left."""
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
                continue  # the driver judges by how long this lasts
            self.answers += 1


def _key(run_id: str) -> bytes:
    return f"stop/{run_id}".encode()
