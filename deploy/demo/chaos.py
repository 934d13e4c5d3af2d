"""`--chaos`: SIGKILL one worker after the first checkpoint, and report it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from deploy.screen.progress import Progress


class WorkerKiller:
    """Kills the last rank once, as soon as a kill costs something.

    That is: a checkpoint is committed, and steps were made after it, so the worker group has
    to go back to the checkpoint and train those events again, exactly once in the end.
    """

    def __init__(self, kill: Callable[[int, int], None] = os.kill) -> None:
        self._kill = kill
        self.killed_pid: int | None = None

    def observe(self, progress: Progress) -> str | None:
        """Look at one reading of the progress; returns what was done, None if nothing."""
        if self.killed_pid is not None or not _worth_a_kill(progress):
            return None
        rank, pid = len(progress.pids) - 1, int(progress.pids[-1])
        try:
            self._kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            # The file is a moment old: that worker is gone already, the next reading has its successor.
            return None
        self.killed_pid = pid
        return (
            f"CHAOS: SIGKILL to worker {rank} (pid {pid}) at step {progress.step}, "
            f"after the checkpoint of step {progress.checkpoint_step}"
        )


def _worth_a_kill(progress: Progress) -> bool:
    step = progress.checkpoint_step
    return progress.state == "training" and bool(progress.pids) and step is not None and progress.step > step
