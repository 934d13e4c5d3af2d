"""The driver and its workers: forked from a process that has imported everything, killed, and started again.

The driver acts like Ray Train's controller: it starts one process per rank, and ends the others when it loses one. The
campaign restarts the whole group, which resumes from the newest checkpoint. If the driver dies, so do its workers. All
processes record how they end, for `verdict.py`.
"""

import ctypes
import errno
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.training.refresh import refresh_from
from cluster.training.state.run import TrainingRun
from cluster.training.worker import Worker
from retrieval.storage.base import Hook
from tests.chaos.faults import Fault
from tests.chaos.table_watch import TableWatch
from tests.chaos.verdict import FAILED, FINISHED
from tests.chaos.versions import watch_steps

_PR_SET_PDEATHSIG = 1
_COLLECTIVES = "cluster/collectives.py"
# A failing rank lives this much longer, so that the driver first sees the killed rank, whose loss makes others fail.
_LINGER_S = 2.0


def drive(
    config: FreshetConfig,
    world: int,
    folder: Path,
    number: int,
    fault: Fault | None,
    refreshes: bool = False,
) -> None:
    """Run a group that trains or refreshes until it ends or loses its first rank; `status.json` says which, and how."""
    _die_with_parent()
    os.setsid()
    pids = []
    for rank in range(world):
        work = partial(_run_rank, rank, world, config, folder, number, fault, refreshes)
        pids.append(_fork_rank(rank, folder, number, fault, work))
    _write(folder / "status.json", {"attempt": number, "pids": pids, "driver": os.getpid()})
    first = _wait(pids)
    ended = {"attempt": number, "pids": [], "outcome": FAILED if first else FINISHED, "first": first}
    _write(folder / "status.json", ended)


class Strike:
    """The hook of one rank, which kills it or fills its disk at a visit of a point."""

    def __init__(self, fault: Fault | None, rank: int, mark: Callable[[str], None]) -> None:
        self._fault = fault if fault is not None and fault.inside and fault.rank == rank else None
        self._mark = mark
        self._visits = 0
        self._full_disk = self._trains = False

    def __call__(self, point: str) -> None:
        if point == "step" and not self._trains:
            self._trains = True
            self._mark("trains")
        fault = self._fault
        if fault is None:
            return
        if self._full_disk and point == "step":
            self._visits += 1
            if self._visits > 2 * fault.occurrence:
                self._die()
        if point != fault.point or self._full_disk:
            return
        self._visits += 1
        if self._visits < fault.occurrence:
            return
        if fault.target != "enospc":
            self._die()
        self._full_disk, self._visits = True, 0
        self._mark("full")
        raise OSError(errno.ENOSPC, "No space left on device (on purpose)")

    def _die(self) -> None:
        self._mark("struck")
        os.kill(os.getpid(), signal.SIGKILL)


class StruckWorker(Worker):
    """The worker loop with a point before each step; rows removed by its tables' limits are counted."""

    def __init__(self, *args: Any, at: Hook, **settings: Any) -> None:
        self._strike = at
        super().__init__(*args, at=at, **settings)

    def _new_run(self, partitions: int) -> TrainingRun:
        run = super()._new_run(partitions)
        self.table_watch = TableWatch(run.table)
        return run

    def _step(self, *, ahead: bool) -> None:
        self._strike("step")
        super()._step(ahead=ahead)


def _fork_rank(rank: int, folder: Path, number: int, fault: Fault | None, work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        _die_with_parent()
        log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        print(f"--- attempt {number}, {fault}", flush=True)
        work()
        status = 0
    except BaseException as error:
        traceback.print_exc()
        told = {"rank": rank, "at_s": time.monotonic(), "error": str(error), "of_a_peer": _of_a_peer(error)}
        _write(folder / f"raised-{number}-{rank}.json", told)
        time.sleep(_LINGER_S)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run_rank(
    rank: int,
    world: int,
    config: FreshetConfig,
    folder: Path,
    number: int,
    fault: Fault | None,
    refreshes: bool,
) -> None:
    import logging

    logging.basicConfig(level=logging.INFO, force=True)
    logging.getLogger("kafka").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    store = f"file://{folder / f'store-{number}'}"
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    strike = Strike(fault, rank, lambda name: _write(folder / f"{name}-{number}.json", time.monotonic()))
    watch_steps(strike, "refresh" if refreshes else "publish")
    if refreshes:
        newest = CheckpointStore(config.checkpoint_location).newest()
        report = folder / f"refresh-{number}.json"
        refresh_from(
            config, Collectives(), torch.device("cpu"), checkpoint_path=newest.location, report_path=report
        )
        return
    worker = StruckWorker(config, Collectives(), torch.device("cpu"), at=strike)
    worker.train()
    _write(folder / f"limits-{number}-{rank}.json", worker.table_watch.removed)
    # Not the interpreter's normal exit, which would wait for libraries' threads.


def _wait(pids: list[int]) -> tuple[int, int] | None:
    """Wait for the first rank whose status is not 0, and end the others; returns rank and status."""
    first = None
    left = set(pids)
    while left:
        pid, status = os.wait()
        left.discard(pid)
        if status != 0 and first is None:
            first = pids.index(pid), status
            for other in left:
                os.kill(other, signal.SIGKILL)
    return first


def _of_a_peer(error: BaseException) -> bool:
    """Whether the error, or one in its context, came from a collective."""
    cause: BaseException | None = error
    while cause is not None:
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            if (
                frame.f_code.co_filename.endswith(_COLLECTIVES)
                or "torch/distributed" in frame.f_code.co_filename
            ):
                return True
        cause = cause.__cause__ or cause.__context__
    return False


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _write(path: Path, value: object) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)


def read_status(folder: Path) -> dict:
    """The driver's last status; empty before the first."""
    try:
        return json.loads((folder / "status.json").read_text())
    except FileNotFoundError:
        return {}


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: Sequence[int], timeout_s: float = 20.0) -> None:
    """Wait until none of these processes runs."""
    deadline = time.monotonic() + timeout_s
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, f"processes {pids} live on after SIGKILL"
        time.sleep(0.005)
