"""`--chaos`: SIGKILL one worker after the first checkpoint, and report it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from deploy.screen.progress import Progress


class WorkerKiller:
    """Kills the last rank once, as soon as a kill loses work.

    That is once steps were taken after a committed checkpoint: the worker group must return to the checkpoint and train
    those events again, exactly once in the end.
    """

    def __init__(self, kill: Callable[[int, int], None] = os.kill) -> None:
        self._kill = kill
        self.killed_pid: int | None = None

    def observe(self, progress: Progress) -> str | None:
        """Check one reading of the progress; returns a description of the kill, None if there was none."""
        if self.killed_pid is not None or not _worth_a_kill(progress):
            return None
        rank, pid = len(progress.pids) - 1, int(progress.pids[-1])
        try:
            self._kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            # The file is slightly old and that worker is already gone; the next reading has its successor.
            return None
        self.killed_pid = pid
        return (
            f"CHAOS: SIGKILL to worker {rank} (pid {pid}) at step {progress.step}, "
            f"after the checkpoint of step {progress.checkpoint_step}"
        )


def _worth_a_kill(progress: Progress) -> bool:
    step = progress.checkpoint_step
    return progress.state == "training" and bool(progress.pids) and step is not None and progress.step > step
