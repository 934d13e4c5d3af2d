"""SIGKILL of a worker to the first training step after it, against an empty Ray Train job killed the same way.

    python tests/benchmarks/resume.py [--json FILE] [--runs N] [--workers N] [--events N] [--items N] [--users N]

Ours is `freshet train`'s own function on a bounded topic: the last rank is killed once a checkpoint is committed and
steps were made after it; the clock stops when the last rank has done its first step. The baseline is a job of as many
workers without a model, started by the same launcher with the same settings of Ray Train: the last rank is killed, and
the clock stops when the first rank's function runs again. One Ray, alternating jobs, medians of paired runs. After each
of ours every event is counted: none may be lost or doubled.
"""

import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import ray

from cluster.audit.exactly_once import verify_exactly_once
from cluster.config import FreshetConfig
from cluster.launching import launcher
from cluster.launching.driver import Driver
from cluster.launching.ray_instance import RayInstance
from cluster.observability.progress_file import read_progress
from cluster.stop_request import StopRequest
from deploy.demo.chaos import WorkerKiller
from deploy.screen.progress import parse_progress
from model.config import ModelConfig
from streaming.config import StreamConfig
from streaming.local_broker.broker import LocalBroker
from tests.benchmarks.support.command import benchmark_parser, finish
from tests.benchmarks.support.resume_jobs import (
    RUNNING,
    STEPPED,
    STRUCK,
    noted,
    run_and_note,
    train_and_note,
)
from tests.benchmarks.support.synthetic import Population
from tests.benchmarks.support.window import Window, benchmark_config, fill_topics

MOST_DIFFERENCE_S = 5.0
CHECKPOINT_EVERY_S = 2.0
_SETTLE_S = 2.0
_POLL_S = 0.02


@dataclass(frozen=True)
class Resumed:
    """Seconds after the SIGKILL.

    Attributes:
        running_s: the first rank's train function runs again.
        stepped_s: the last rank has done a training step; the same as `running_s` where nothing is trained.
        load: the machine's load average (1 min) before the job, to judge by whether the times can be trusted.
    """

    running_s: float
    stepped_s: float
    load: float


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--events", type=int, default=24_000)
    parser.add_argument("--items", type=int, default=Population.items)
    parser.add_argument("--users", type=int, default=Population.users)
    arguments = parser.parse_args()
    result = measure(
        Population(users=arguments.users, items=arguments.items),
        arguments.events,
        arguments.workers,
        arguments.runs,
    )
    return finish(result, arguments.json)


def measure(population: Population, events: int, workers: int, runs: int) -> dict[str, Any]:
    """Alternating jobs on one Ray and one topic."""
    with tempfile.TemporaryDirectory() as folder, LocalBroker(Path(folder) / "kafka") as broker:
        stream = StreamConfig(bootstrap_servers=broker.bootstrap_servers)
        window = Window(prefill=0, warmup=0, steps=events // Window.batch_events)
        fill_topics(stream, population, window)
        config = benchmark_config(stream, ModelConfig(), window, Path(folder), workers)
        config = replace(config, train=replace(config.train, checkpoint_every_s=CHECKPOINT_EVERY_S))
        launcher._start_ray(config)
        try:
            ours, empty = [], []
            for run in range(runs):
                ours.append(_job(replace(config, storage_path=f"{folder}/ours-{run}"), trained=True))
                empty.append(_job(replace(config, storage_path=f"{folder}/empty-{run}"), trained=False))
        finally:
            ray.shutdown()
    return report(ours, empty, {"workers": workers, "events": window.events, **vars(population)})


def report(ours: list[Resumed], empty: list[Resumed], settings: dict[str, Any]) -> dict[str, Any]:
    """Medians, and those of the differences and ratios of paired runs."""
    differences = [o.stepped_s - e.running_s for o, e in zip(ours, empty, strict=True)]
    ratios = [o.stepped_s / e.running_s for o, e in zip(ours, empty, strict=True)]
    difference_s = statistics.median(differences)
    return {
        "name": "resume",
        "baseline": "an empty Ray Train job of as many workers: SIGKILL of one to its train function running again",
        "kill_to_first_step_s": statistics.median(o.stepped_s for o in ours),
        "kill_to_function_running_s": statistics.median(o.running_s for o in ours),
        "baseline_kill_to_function_running_s": statistics.median(e.running_s for e in empty),
        "difference_s": difference_s,
        "differences_s": differences,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "most_difference_s": MOST_DIFFERENCE_S,
        "passed": difference_s <= MOST_DIFFERENCE_S,
        "settings": settings,
        "runs": [asdict(o) for o in ours],
        "baseline_runs": [asdict(e) for e in empty],
    }


def _job(config: FreshetConfig, *, trained: bool) -> Resumed:
    """Start a job, kill its last rank, and see it through."""
    notes = Path(config.storage_path) / "notes"
    notes.mkdir(parents=True)
    load = os.getloadavg()[0]
    striker = _Striker(config, notes, trained)
    striker.start()
    extra = {"run_id": "resume", "notes": str(notes)}
    driver = Driver(
        "resume",
        RayInstance.present,
        StopRequest(),
        stop_within_s=config.train.stop_within_s,
        can_finish=lambda: False,
        stopped=lambda: False,
    )
    launcher._fit(driver, config, train_and_note if trained else run_and_note, extra, max_failures=1)
    striker.join(_POLL_S * 10)
    if striker.is_alive():
        raise RuntimeError(
            "the job ended before there was a checkpoint with steps behind it (option: --events)"
        )
    if trained and not (accounting := verify_exactly_once(config)).exactly_once:
        raise RuntimeError(f"events were lost or doubled: {accounting}")
    again = noted(notes, RUNNING, striker.struck_s)
    running_s = min(at for _, at in again.values()) - striker.struck_s
    if not trained:
        return Resumed(running_s, running_s, load)
    stepped = noted(notes, STEPPED, striker.struck_s)
    if len(stepped) != config.train.workers:
        raise RuntimeError(f"{len(stepped)} of {config.train.workers} ranks made a step after the kill")
    return Resumed(running_s, max(at for _, at in stepped.values()) - striker.struck_s, load)


class _Striker(threading.Thread):
    """Kills the last rank when that costs something, and knows when it was."""

    def __init__(self, config: FreshetConfig, notes: Path, trained: bool) -> None:
        super().__init__(daemon=True)
        self._config, self._notes, self._trained = config, notes, trained
        self.struck_s = float("inf")

    def run(self) -> None:
        (self._strike_training if self._trained else self._strike_empty)()

    def _strike_training(self) -> None:
        killer = WorkerKiller(self._kill)
        while killer.observe(parse_progress(read_progress(Path(self._config.storage_path)))) is None:
            time.sleep(_POLL_S)

    def _strike_empty(self) -> None:
        workers = int(self._config.train.workers)
        while len(running := noted(self._notes, RUNNING)) < workers:
            time.sleep(_POLL_S)
        time.sleep(_SETTLE_S)
        self._kill(running[workers - 1][0], signal.SIGKILL)

    def _kill(self, pid: int, number: int) -> None:
        (self._notes / STRUCK).touch()
        self.struck_s = time.time()
        os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(main())
