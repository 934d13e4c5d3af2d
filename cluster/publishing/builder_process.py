"""A process beside each worker that builds its share of a version at a lower priority, and is kept for the next one.

    worker                      builder
    start ─── its group ──────► joins the other ranks' builders (gloo; they meet in a file)
    build ─── an Attempt ─────► make_version
          ◄── new events? ───── what the worker sampled since the checkpoint's snapshot, for the quality gate
          ─── batches ────────►
          ◄── may I commit? ─── rank 0, before the version goes live
          ─── a refusal, or "" ►
          ◄── an Outcome ──────

Their messages are pickled, between the two ends of a socket pair that no other process has. The builder ends when its
standard input does, which is when its worker ends in any way.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa
import torch
import torch.distributed as dist

from cluster.collectives import Collectives
from cluster.publishing.attempt import Attempt, Outcome, make_version
from cluster.queries.towers import new_towers
from cluster.queries.version_store import version_store
from retrieval.ranks import OtherRankError

_PATIENCE = timedelta(hours=1)
"""How long a builder waits for the others, for example for rank 0's k-means of millions of items."""
_JOIN = timedelta(minutes=2)
_NICENESS = 10
_MAIN = f"from {__name__} import main; main()"  # not as __main__, whose classes would be different ones
_MAY_I, _NEW_EVENTS = "may I commit?", "new events?"
_log = logging.getLogger(__name__)


class BuilderLost(RuntimeError):
    """The builder of this rank has died; says how it ended."""


@dataclass(frozen=True)
class _Group:
    """The builder's rank, and how it finds the others."""

    rank: int
    world: int
    meeting: Path
    device: torch.device
    threads: int


@dataclass(frozen=True)
class _Built:
    """An outcome in a message: a version by its name, an error by its text."""

    outcome: Outcome
    version: str = ""
    error: str = ""
    echo: bool = False
    """The error only means that another rank has one."""


class BuilderProcess:
    """The worker's end.

    Args:
        rank, world: of the worker.
        meeting: a file that does not exist yet, the same for all ranks.
        device: that encodes.
        threads: of torch and OpenMP.
    """

    def __init__(self, rank: int, world: int, meeting: Path, device: torch.device, threads: int) -> None:
        here, there = socket.socketpair()
        paths = os.pathsep.join(path for path in [os.getcwd(), *sys.path] if path)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, str(there.fileno())],
            stdin=subprocess.PIPE,  # nothing is written; its end is the message
            pass_fds=[there.fileno()],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)},
        )
        there.close()
        self._link = Connection(here.detach())
        self._send(_Group(rank, world, meeting, device, threads))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def wait_joined(self) -> None:
        """Wait until the builders of all ranks have found each other.

        Raises:
            BuilderLost: it has died, or gave up because another one has.
        """
        problem = self._receive()
        if problem:
            raise BuilderLost(f"the builders of the ranks did not find each other: {problem}")

    def build(
        self,
        attempt: Attempt,
        check: Callable[[], None],
        new_events: Callable[[], Sequence[pa.RecordBatch]],
    ) -> Outcome:
        """Let it build; `check` and `new_events` are called in this process, the worker.

        Raises:
            BuilderLost: it has died.
        """
        self._send(attempt)
        refused: Exception | None = None
        while (message := self._receive()) in (_MAY_I, _NEW_EVENTS):
            if message == _NEW_EVENTS:
                self._send(list(new_events()))
                continue
            refused = _refusal(check)
            self._send(str(refused) if refused is not None else "")
        assert isinstance(message, _Built)
        if isinstance(refused, OSError):
            return Outcome(problem=str(refused))
        if refused is not None:
            return Outcome(error=refused)
        if message.error:
            kind = OtherRankError if message.echo else RuntimeError
            return replace(message.outcome, error=kind(message.error))
        report = message.outcome.report
        if report is None or not message.version:
            return message.outcome
        return Outcome(replace(report, version=version_store(attempt.config).open(message.version)))

    def close(self) -> None:
        """Send SIGKILL; the next attempt removes its unfinished files."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._link.close()

    def _send(self, message: object) -> None:
        try:
            self._link.send(message)
        except OSError as error:
            raise self._lost() from error

    def _receive(self) -> object:
        try:
            return self._link.recv()
        except (EOFError, OSError) as error:
            raise self._lost() from error

    def _lost(self) -> BuilderLost:
        return BuilderLost(f"the process that builds index versions ended with {self._process.wait()}")


def _refusal(check: Callable[[], None]) -> Exception | None:
    try:
        check()
    except Exception as error:
        return error
    return None


def serve(link: Connection) -> None:
    """The builder's side: build as requested until the worker is gone."""
    group = link.recv()
    assert isinstance(group, _Group)
    torch.set_num_threads(group.threads)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{group.meeting}",
            rank=group.rank,
            world_size=group.world,
            timeout=_JOIN,
        )
        comm = Collectives().beside(_PATIENCE)
    except Exception as error:
        link.send(str(error))
        return
    link.send("")
    while True:
        attempt = link.recv()
        assert isinstance(attempt, Attempt)
        towers = new_towers(attempt.config, group.device)
        outcome = make_version(comm, attempt, towers, lambda: _ask(link), lambda: _new_events(link))
        link.send(_described(outcome))


def _ask(link: Connection) -> None:
    link.send(_MAY_I)
    refused = link.recv()
    if refused:
        raise RuntimeError(refused)


def _new_events(link: Connection) -> Sequence[pa.RecordBatch]:
    link.send(_NEW_EVENTS)
    batches: list[pa.RecordBatch] = link.recv()
    return batches


def _described(outcome: Outcome) -> _Built:
    report = outcome.report
    if report is not None and report.version is not None:
        return _Built(Outcome(replace(report, version=None)), version=report.version.name)
    error = outcome.error
    if isinstance(error, OtherRankError):
        return _Built(replace(outcome, error=None), error=str(error), echo=True)
    if error is not None:
        _log.error("building an index version failed", exc_info=error)
        return _Built(replace(outcome, error=None), error=f"{type(error).__name__}: {error}")
    return _Built(outcome)


def _end_with_worker() -> None:
    os.read(0, 1)
    os._exit(0)


def main() -> None:
    """Entry point of the process; its argument is the descriptor of its end of the socket pair."""
    threading.Thread(target=_end_with_worker, name="worker", daemon=True).start()
    os.nice(_NICENESS)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    with suppress(EOFError):  # the worker is gone
        serve(Connection(int(sys.argv[1])))
