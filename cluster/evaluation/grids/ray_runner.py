"""Cells as Ray tasks, on this machine or on a running cluster.

A task only computes; the driver writes its result. So a cluster's nodes need no shared folder, and a task that dies
leaves no files.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.device import resolve_device
from cluster.evaluation.grids.cell import Cell, CellResult, run_cell
from cluster.evaluation.grids.grid import CellEvent, Tell, failure
from cluster.evaluation.protocol.data import Tables
from cluster.evaluation.systems.fitting import PassReport
from cluster.launching.ray_instance import RayInstance

POLL_S = 0.5
# Tasks of a lost node are retried; a cell that raises an error is not.
_RETRIES_OF_A_LOST_TASK = 1


class OnRay:
    """Runs up to `workers` cells at a time. Ray is started or joined for the first cells, and left by `close`.

    Args:
        tables: the data set.
        workers: 0: as many as the cluster has CPUs for.
        threads: CPUs per cell.
        address: of a running cluster (`auto`, or host:port); empty: RAY_ADDRESS, or a new one on this machine.
    """

    def __init__(self, tables: Tables, *, workers: int, threads: int, address: str = "") -> None:
        self.tables, self.workers, self.threads, self.address = tables, workers, threads, address
        self._ray: RayInstance | None = None
        self._authentication = {name: os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE")}

    def run(self, cells: Sequence[Cell], tell: Tell) -> None:
        """See Runner."""
        if not ray.is_initialized():
            self._ray = _start(self.address, self.workers * self.threads)
        _Run(self, cells, tell).until_done()

    def close(self) -> None:
        """See Runner. A joined Ray keeps running."""
        if self._ray is not None:
            self._ray.close()
            self._ray = None
            # Only for this run: the next Ray started in this environment would require the token.
            for name, value in self._authentication.items():
                if value is None:
                    os.environ.pop(name, None)


class _Run:
    """Tasks that wait, run, and have ended."""

    def __init__(self, runner: OnRay, cells: Sequence[Cell], tell: Tell) -> None:
        self._workers = runner.workers or max(1, int(_resource("CPU")) // runner.threads)
        self._task = ray.remote(_run_on_ray).options(
            num_cpus=runner.threads,
            num_gpus=_gpus_of_a_cell(cells, self._workers),
            max_retries=_RETRIES_OF_A_LOST_TASK,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(runner.threads)}},
        )
        self._board: Any = ray.remote(_Board).options(num_cpus=0).remote()
        self._tables = ray.put(runner.tables)
        self._waiting, self._tell = deque(cells), tell
        self._running: dict[Any, Cell] = {}

    def until_done(self) -> None:
        """Submit tasks, report, and collect results; no task is left running at the end."""
        try:
            while self._waiting or self._running:
                self._submit()
                done, _ = ray.wait(list(self._running), num_returns=1, timeout=POLL_S)
                self._tell_passes()
                for task in done:
                    self._collect(task)
        finally:
            for task in self._running:
                ray.cancel(task, force=True)
            ray.kill(self._board)

    def _submit(self) -> None:
        while self._waiting and len(self._running) < self._workers:
            cell = self._waiting.popleft()
            self._running[self._task.remote(cell, self._tables, self._board)] = cell

    def _collect(self, task: Any) -> None:
        cell = self._running.pop(task)
        try:
            result: CellResult = ray.get(task)
        except RayTaskError as error:
            self._tell(CellEvent(cell, "failed", error=failure(getattr(error, "cause", None) or error)))
        except RayError as error:
            self._tell(CellEvent(cell, "failed", error=failure(error)))
        else:
            self._tell(CellEvent(cell, "finished", result=result))

    def _tell_passes(self) -> None:
        """The tasks' new reports; if the actor is lost, only reports are."""
        running = {cell.key: cell for cell in self._running.values()}
        try:
            said: list[tuple[str, PassReport | None]] = ray.get(self._board.take.remote(), timeout=10)
        except RayError:
            return
        for key, report in said:
            if key in running:
                self._tell(CellEvent(running[key], "pass" if report else "started", report=report))


class _Board:
    """Collects the tasks' reports until the driver takes them."""

    def __init__(self) -> None:
        self._said: list[tuple[str, PassReport | None]] = []

    def say(self, key: str, report: PassReport | None) -> None:
        self._said.append((key, report))

    def take(self) -> list[tuple[str, PassReport | None]]:
        said, self._said = self._said, []
        return said


def _run_on_ray(cell: Cell, tables: Tables, board: Any) -> CellResult:
    board.say.remote(cell.key, None)
    return run_cell(cell, tables, lambda report: board.say.remote(cell.key, report))


def _gpus_of_a_cell(cells: Sequence[Cell], workers: int) -> float:
    """The share of a GPU that Ray reserves per cell: all GPUs divided by the workers, at most 1; 0 on CPUs."""
    gpus = _resource("GPU")
    wanted = {cell.config.device for cell in cells}
    if wanted == {"cpu"} or (not gpus and resolve_device("auto").type == "cpu"):
        return 0.0
    return min(1.0, gpus / workers)


def _resource(name: str) -> float:
    """The amount of a resource in the whole cluster."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources.get(name, 0.0)


def _start(address: str, cpus: int) -> RayInstance:
    """Join the cluster at the address, or start one here."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address := address or os.environ.get("RAY_ADDRESS", ""):
        return RayInstance.join(address=address, **quiet)
    return RayInstance.start(cpus, **quiet)
