"""A stretch of training steps of a real Worker: the pieces of its own loop, timed, without its start and end.

The loop is the one of `Worker.train`: agree, step, ledger, progress file, publishing's list of append times. Left
out are what happens every few seconds (checkpoint, publish), which the caller turns off by its settings.
"""

import gc
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from cluster.collectives import Collectives
from cluster.config import FreshetConfig, ProgressiveConfig, TrainConfig
from cluster.training.control import agree
from cluster.training.worker import Worker
from model.config import ModelConfig
from streaming.config import StreamConfig
from streaming.kafka.topics import create_topics
from streaming.producing.producer import EventProducer
from tests.benchmarks.support.synthetic import Population

_PREFILL_QUOTA = 8192
_NEVER_S = 1e9


@dataclass(frozen=True)
class Window:
    """How much is trained.

    Attributes:
        prefill: events that only fill the histories, so that the steps are those of a stream that is on its way.
        warmup: steps before the clock starts.
        steps: steps under the clock.
        batch_events: events of a step, all ranks together.
        partitions: of the topic.
        validation: whether a share of the events is scored before it is trained on, as by default in `freshet train`.
    """

    prefill: int = 60_000
    warmup: int = 5
    steps: int = 30
    batch_events: int = 256
    partitions: int = 4
    validation: bool = False

    @property
    def events(self) -> int:
        """Events that the topic must hold, with a margin for partitions of unequal length."""
        return int((self.prefill + (self.warmup + self.steps) * self.batch_events) * 1.15)


@dataclass(frozen=True)
class Cost:
    """What a stretch of training cost."""

    examples: int
    wall_s: float
    cpu_s: float

    @property
    def examples_per_s(self) -> float:
        """By wall time."""
        return self.examples / self.wall_s

    @property
    def examples_per_cpu_s(self) -> float:
        """By CPU time of all threads of the process."""
        return self.examples / self.cpu_s


@dataclass(frozen=True)
class Timing(Cost):
    """The same here, beside others."""

    host_cpu_s: float
    """Of everything that ran on the machine, to judge by whether the wall time can be trusted."""


class Clock:
    """Wall and CPU seconds since it was made, without a garbage collection that others left behind."""

    def __init__(self) -> None:
        gc.collect()
        self._host, self._wall, self._cpu = _host_cpu_s(), time.perf_counter(), time.process_time()

    def read(self, examples: int) -> Timing:
        """What was spent on so many examples."""
        wall_s, cpu_s = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return Timing(examples, wall_s, cpu_s, _host_cpu_s() - self._host)


def _host_cpu_s() -> float:
    """CPU seconds that the machine has spent since it started; 0 where /proc does not say."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    idle_and_waiting = int(fields[3]) + int(fields[4])
    return (sum(map(int, fields[:8])) - idle_and_waiting) / os.sysconf("SC_CLK_TCK")


def cpus_of_others(run: Sequence[Timing]) -> float:
    """CPUs that other processes kept busy while these timings were taken side by side."""
    own_s = sum(timing.cpu_s for timing in run)
    return max(0.0, run[0].host_cpu_s - own_s) / max(run[0].wall_s, 1e-9)


def benchmark_config(
    stream: StreamConfig, model: ModelConfig, window: Window, storage: Path, workers: int = 1
) -> FreshetConfig:
    """One thread per worker, the topic as it stands, no checkpoint, no publishing."""
    train = TrainConfig(
        workers=workers,
        threads_per_worker=1,
        batch_events=window.batch_events,
        bounded=True,
        checkpoint_every_s=_NEVER_S,
        publish_every_s=0,
    )
    return FreshetConfig(
        stream=stream,
        model=model,
        train=train,
        progressive=ProgressiveConfig() if window.validation else ProgressiveConfig(sample_fraction=0.0),
        device="cpu",
        storage_path=str(storage),
    )


def fill_topics(stream: StreamConfig, population: Population, window: Window) -> None:
    """Create the topics and produce the events, as Arrow messages."""
    create_topics(stream, partitions=window.partitions)
    with EventProducer(stream) as producer:
        producer.send(population.events(window.events))


def open_worker(config: FreshetConfig, population: Population, window: Window) -> Worker:
    """A worker with an open stream, a known catalogue and full histories, before its first step."""
    worker = Worker(config, Collectives(), torch.device("cpu"))
    worker._open()
    worker.run.catalogue.apply(population.catalogue())
    per_partition = window.prefill // window.partitions
    while per_partition > 0:
        quota = min(per_partition, _PREFILL_QUOTA)
        worker.run.batcher.wait_full(quota, 60.0)
        worker.run.batcher.next_batch(quota)
        per_partition -= quota
    return worker


def train_steps(worker: Worker, steps: int) -> int:
    """Turns of the worker's loop until so many steps are done; returns the events of all ranks."""
    before, last = worker.run.events_trained, worker.run.step + steps
    while worker.run.step < last:
        decision = agree(worker.comm, worker._report(), worker.config.train)
        worker._absorb(decision)
        if decision.stop:
            raise RuntimeError(f"the stream ended at step {worker.run.step} of {last}: produce more events")
        if decision.step:
            worker._step(ahead=decision.ahead)
        else:
            worker._stepping.wait_full(0.02)
    return worker.run.events_trained - before


def timed_window(config: FreshetConfig, population: Population, window: Window) -> Timing:
    """A fresh worker's steps under the clock. Collective: every rank calls it."""
    worker = open_worker(config, population, window)
    try:
        train_steps(worker, window.warmup)
        worker.comm.exchange(np.zeros(1))
        clock = Clock()
        examples = train_steps(worker, window.steps)
        worker.comm.exchange(np.zeros(1))
        return clock.read(examples)
    finally:
        worker._saving.close(None)
        worker._intake.close()
        worker.run.close()


def window_batches(config: FreshetConfig, population: Population, window: Window) -> list[pa.RecordBatch]:
    """The batches of warm-up and window, as one worker would get them."""
    worker = open_worker(config, population, window)
    try:
        batches = []
        for _ in range(window.warmup + window.steps):
            worker.run.batcher.wait_full(worker._stepping.quota, 60.0)
            batches.append(worker.run.batcher.next_batch(worker._stepping.quota))
        return batches
    finally:
        worker._saving.close(None)
        worker._intake.close()
        worker.run.close()
