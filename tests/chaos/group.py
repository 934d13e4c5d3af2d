"""The driver and its workers: forked from a process that has imported everything, killed for good, started again.

The driver does what Ray Train's controller does: it starts one process per rank, and when one of them is lost it ends
the others and starts the whole group again, which resumes from the newest checkpoint. A driver that dies takes its
workers with it.
"""

import ctypes
import errno
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.training.worker import Worker
from tests.chaos.faults import Fault
from tests.unit_runs import QUOTA, small_run

_PR_SET_PDEATHSIG = 1
FAILED, FINISHED = "failed", "finished"


def drive(
    config: FreshetConfig, world: int, folder: Path, first: int, faults: Sequence[Fault | None]
) -> None:
    """Start group after group, one for each fault, until one finishes or fails by itself; says so in `status.json`."""
    _die_with_parent()
    os.setsid()
    outcome = FAILED
    for number, fault in enumerate(faults, first):
        pids = [_fork_rank(rank, world, config, folder, number, fault) for rank in range(world)]
        _write(folder / "status.json", {"attempt": number, "pids": pids, "driver": os.getpid()})
        statuses = _wait(pids)
        if all(status == 0 for status in statuses):
            outcome = FINISHED
            break
        if not any(os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL for status in statuses):
            break  # nobody was killed: this is a bug, and the logs say which
        if fault is not None and fault.target in ("truncate", "bitflip"):
            outcome = "damage"  # whoever started this does it while nobody writes
            break
    _write(folder / "status.json", {"attempt": number, "pids": [], "outcome": outcome})


class Strike:
    """The hook of one rank: kills it, or fills its disk, at a visit of a point."""

    def __init__(self, fault: Fault | None, rank: int) -> None:
        self._fault = fault if fault is not None and fault.inside and fault.rank == rank else None
        self._visits = 0
        self._full_disk = False

    def __call__(self, point: str) -> None:
        fault = self._fault
        if fault is None:
            return
        if self._full_disk and point == "step":
            self._visits += 1
            if self._visits > 2 * fault.occurrence:
                os.kill(os.getpid(), signal.SIGKILL)
        if point != fault.point or self._full_disk:
            return
        self._visits += 1
        if self._visits < fault.occurrence:
            return
        if fault.target != "enospc":
            os.kill(os.getpid(), signal.SIGKILL)
        self._full_disk, self._visits = True, 0
        raise OSError(errno.ENOSPC, "No space left on device (on purpose)")


class StruckWorker(Worker):
    """The worker loop itself, with a point before each step."""

    def _step(self) -> None:
        self._at("step")
        super()._step()


def _warm_up() -> None:
    """Load every compiled kernel before anything is forked; no backward pass, whose threads no fork survives."""
    torch.set_num_threads(1)
    run = small_run()
    prepared = run.train_step.prepare(batch := run.batcher.next_batch(QUOTA), 0)
    run.progressive.score(batch, prepared)
    run.ledger.add_batch(batch)


if os.environ.get("FRESHET_CHAOS_WARM"):
    _warm_up()


def _fork_rank(
    rank: int, world: int, config: FreshetConfig, folder: Path, number: int, fault: Fault | None
) -> int:
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
        _run_rank(rank, world, config, folder, number, fault)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run_rank(
    rank: int, world: int, config: FreshetConfig, folder: Path, number: int, fault: Fault | None
) -> None:
    import logging

    logging.basicConfig(level=logging.INFO, force=True)
    logging.getLogger("kafka").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    store = f"file://{folder / f'store-{number}'}"
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    StruckWorker(config, Collectives(), torch.device("cpu"), at=Strike(fault, rank)).train()
    # Not by the interpreter's end: nobody waits for threads of libraries after the work is done.


def _wait(pids: list[int]) -> list[int]:
    """Statuses in the order of ending; the first that is not 0 ends the others."""
    statuses = []
    left = set(pids)
    while left:
        pid, status = os.wait()
        left.discard(pid)
        statuses.append(status)
        if status != 0:
            for other in left:
                os.kill(other, signal.SIGKILL)
            while left:
                left.discard(os.wait()[0])
    return statuses


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _write(path: Path, value: object) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)


def read_status(folder: Path) -> dict:
    """What the driver said last; empty before that."""
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
    """Until none of these processes runs."""
    deadline = time.monotonic() + timeout_s
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, f"processes {pids} live on after SIGKILL"
        time.sleep(0.005)
