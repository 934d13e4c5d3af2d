"""Drives Ray from a thread, so that the main thread can handle signals and notice that Ray's head is gone.

`Driver.run` returns when the work is done. It abandons the work if a stop is requested before anything was trained, if
the last checkpoint is not committed in time, or if the head no longer answers. Then an own Ray instance is killed. The
thread may hang in Ray, so the process ends without waiting for it (`_end_at_exit`).
"""

from __future__ import annotations

import atexit
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import ray

from cluster.launching.processes import descendants, kill_all
from cluster.launching.ray_instance import RayInstance
from cluster.launching.stopping import HeadLine
from cluster.stop_request import StopRequest

_POLL_S = 0.1
# Ray's own clients give up after 60 s and end the process with a dump; a fault-tolerant head is back by then.
_HEAD_PATIENCE_S = 45.0
# The part of the time for a stop that ending Ray's processes takes.
_KILL_S = 1.5
# How long Ray may take to end once the work is done.
_LEAVE_S = 2.0


class HeadLost(RuntimeError):
    """Ray's head no longer answers; the message says where it was."""


class StopTimedOut(RuntimeError):
    """A stop was requested, and the last checkpoint was not committed in time."""


class Driver:
    """One run's use of Ray.

    Args:
        run_id: names the run in Ray's key-value store.
        start: starts or joins Ray.
        stop: the request to end.
        stop_within_s: how long the process may continue after it.
        can_finish: called after a stop request: whether the workers have work to finish; if not, they are killed at
            once.
        stopped: returns whether the workers have ended as requested.
    """

    def __init__(
        self,
        run_id: str,
        start: Callable[[], RayInstance],
        stop: StopRequest,
        *,
        stop_within_s: float,
        can_finish: Callable[[], bool],
        stopped: Callable[[], bool],
    ) -> None:
        self._run_id, self._start, self._stop = run_id, start, stop
        self._stop_within_s = stop_within_s
        self._can_finish, self._stopped = can_finish, stopped
        self._ray: RayInstance | None = None
        self._head: HeadLine | None = None
        self._error: BaseException | None = None
        self._answers, self._silent_s = 0, 0.0
        self._before = {process.pid for process in descendants(os.getpid())}
        self._done = threading.Event()

    def run(self, work: Callable[[], None]) -> bool:
        """Do the work within Ray; returns whether it finished, rather than being abandoned after a stop request.

        Raises:
            HeadLost, StopTimedOut: it was abandoned.
            Exception: what the work raised.
        """
        self._stop.heeded, self._stop.kill = True, self.kill
        threading.Thread(target=self._work, args=(work,), name="ray driver", daemon=True).start()
        try:
            ended = self._watch()
        finally:
            self._stop.heeded = False
        if self._error is not None:
            raise self._error
        return ended

    def kill(self) -> None:
        """End an own Ray instance at once; safe in a signal handler."""
        if self._ray is not None:
            self._ray.kill()
        else:  # Ray is still starting
            kill_all(process for process in descendants(os.getpid()) if process.pid not in self._before)

    def _watch(self) -> bool:
        until_s = math.inf
        stopped = False
        while not self._done.wait(_POLL_S):
            self._stop.keep_handlers()  # Ray's C++ handler of SIGTERM would print a stack and abort after 3 s
            self._check_head()
            if not self._stop.asked:
                continue
            now = time.monotonic()
            until_s = min(until_s, now + max(self._stop_within_s - _KILL_S, 0.0))
            if not stopped and self._stopped():
                stopped, until_s = True, min(until_s, now + _LEAVE_S)
            if (now >= until_s and stopped) or not self._can_finish():
                self._give_up(self._stop.status)
                return False
            if now >= until_s:
                self._give_up(1)
                raise StopTimedOut(
                    f"stopped, but the last checkpoint was not committed within {self._stop_within_s:g} s "
                    "(setting: train.stop_within_s): the next run resumes from the one before it"
                )
        return True

    def _work(self, work: Callable[[], None]) -> None:
        try:
            self._ray = self._start()
            self._head = HeadLine(self._run_id, self._stop)
            try:
                work()
            finally:
                head, self._head = self._head, None  # from here, missing answers mean nothing
                head.close()
                self._ray.close()
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def _check_head(self) -> None:
        head, instance = self._head, self._ray
        if head is None or instance is None:
            return
        # Counted in our own checks, not by the clock: a process that was paused has not asked meanwhile.
        self._silent_s = 0.0 if head.answers != self._answers else self._silent_s + _POLL_S
        self._answers = head.answers
        missing = instance.missing
        if (not missing and self._silent_s <= _HEAD_PATIENCE_S) or self._head is None:
            return
        where = "this machine" if instance.own else os.environ.get("RAY_ADDRESS", "its address")
        self._give_up(status=1)
        what = f"its process {missing} ended" if missing else f"no answer for {self._silent_s:.0f} s"
        raise HeadLost(
            f"Ray's head on {where} is gone ({what}): start the command again, it resumes from the newest checkpoint"
        )

    def _give_up(self, status: int) -> None:
        if self._ray is not None and not self._ray.own:
            leaving = threading.Thread(target=_leave_quietly, daemon=True)
            leaving.start()
            leaving.join(_KILL_S)
        self.kill()
        atexit.register(_end_at_exit, status)


def _leave_quietly() -> None:
    with suppress(Exception):
        ray.shutdown()


def _end_at_exit(status: int) -> None:
    """End the process directly; the interpreter's normal exit would wait for Ray's clients or be killed by them."""
    for stream in (sys.stdout, sys.stderr):  # noqa: TID251 - nothing is written
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
