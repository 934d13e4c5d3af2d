"""Training while an index version is published against training while none is, in one run of one worker.

    python tests/benchmarks/publish.py [--json FILE] [--items N] [--users N] [--batch-events N] [--runs N] [--touched N]
        [--nlist N]

A worker in memory with default settings, 64 columns, rows and titles of every item, and histories of every user.
Windows alternate: steps while a version is published (a full checkpoint is committed, then a process beside the worker
builds, gates, and promotes a version of it), and as many steps without. `ratio` is the examples per CPU second of the
worker's own process with a publish over the mean of the windows before and after it: the median. `pauses_ms` is how
long a step waits for the publish, the longest pauses first; `pause_share` is their sum over the publish's wall time.
`delta` has the same of a checkpoint without a version that holds `--touched` changed rows. Nothing is trained long
enough for the recall gate, which is off.
"""

import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from cluster.checkpoints.checkpoint import Checkpoint, CheckpointStore
from cluster.checkpoints.writing import Checkpointer
from cluster.collectives import Collectives
from cluster.config import FreshetConfig, ProgressiveConfig, TrainConfig
from cluster.publishing.publisher import Publisher
from cluster.training.state.run import TrainingRun
from cluster.training.state.worker_state import checkpointer_of
from model.config import ModelConfig
from model.features import ITEM
from retrieval.config import IndexConfig
from streaming.batches.batcher import Batcher
from streaming.config import StreamConfig
from streaming.events.partitioner import key_hashes_of_users
from tests.benchmarks.support.command import benchmark_parser, finish
from tests.benchmarks.support.synthetic import Population
from tests.benchmarks.support.window import Clock, Timing
from tests.support.checkpointing import start_new_chain
from tests.support.memory_source import MemorySource, NoDeadLetters, partitioned_log

REQUIRED_RATIO, MOST_PAUSE_MS, MOST_PAUSE_SHARE = 0.8, 50.0, 0.05
_EVENTS_OF_USER = 4
_WARMUP = 5
_STEPS_OF_LOG = 1000
_FIRST_STEPS = 40


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--batch-events", type=int, default=256)
    parser.add_argument("--runs", type=int, default=2, help="pairs of windows")
    parser.add_argument("--touched", type=int, default=300_000, help="rows that the delta holds")
    parser.add_argument("--nlist", type=int, default=0, help="lists of the index; 0 = by the number of items")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(folder, arguments.items, arguments.users, arguments.batch_events, arguments.nlist)
        try:
            result = measure(trainer, arguments.runs, min(arguments.touched, arguments.items))
        finally:
            trainer.close()
    result["settings"] = {k: v for k, v in vars(arguments).items() if k != "json"}
    return finish(result, arguments.json)


def measure(trainer: "Trainer", pairs: int, touched: int) -> dict[str, Any]:
    """The windows, and a delta of many rows."""
    trainer.steps(_WARMUP)
    # A window is compared with those on both sides of it, in case steps become slower or faster with time.
    with_, without = [], [trainer.steps(_FIRST_STEPS)]
    for _ in range(pairs):
        with_.append(trainer.published())
        without.append(trainer.steps(with_[-1].steps))
    trainer.touch(touched)
    delta = trainer.saved()
    paces = [stretch.timing.examples_per_cpu_s for stretch in without]
    ratios = [
        stretch.timing.examples_per_cpu_s / statistics.mean(around)
        for stretch, around in zip(with_, itertools.pairwise(paces), strict=True)
    ]
    share = statistics.median(stretch.pause_share for stretch in with_)
    longest = max(stretch.pauses_ms[0] for stretch in [*with_, delta])
    return {
        "name": "publish",
        "baseline": "the same steps while nothing is published",
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "longest_pause_ms": longest,
        "pause_share": share,
        "required": {
            "ratio": REQUIRED_RATIO,
            "longest_pause_ms": MOST_PAUSE_MS,
            "pause_share": MOST_PAUSE_SHARE,
        },
        "passed": statistics.median(ratios) >= REQUIRED_RATIO
        and longest <= MOST_PAUSE_MS
        and share <= MOST_PAUSE_SHARE,
        "publishes": [stretch.figures() for stretch in with_],
        "delta": delta.figures(),
        "without": [stretch.figures() for stretch in without],
    }


@dataclass
class Stretch:
    """Some steps and what held them up."""

    timing: Timing
    steps: int
    pauses_s: list[tuple[float, str]] = field(default_factory=list)
    cpu_pauses_s: list[float] = field(default_factory=list)
    """CPU time of the thread that steps: what of a pause is its own work, on a machine that does other things too."""

    @property
    def pauses_ms(self) -> list[float]:
        """The longest first."""
        return [1e3 * pause for pause, _ in sorted(self.pauses_s, reverse=True)] or [0.0]

    @property
    def pause_share(self) -> float:
        """Of the wall time."""
        return sum(pause for pause, _ in self.pauses_s) / self.timing.wall_s

    def figures(self) -> dict[str, Any]:
        """For JSON."""
        worst = [(what, round(1e3 * pause, 2)) for pause, what in sorted(self.pauses_s, reverse=True)[:5]]
        return {
            "steps": self.steps,
            "wall_s": self.timing.wall_s,
            "cpu_s": self.timing.cpu_s,
            "examples_per_cpu_s": self.timing.examples_per_cpu_s,
            "pauses_ms": worst,
            "longest_cpu_pause_ms": 1e3 * max(self.cpu_pauses_s, default=0.0),
            "pause_share": self.pause_share,
        }


class Trainer:
    """What a worker does between and in its steps, without a broker.

    Versions of more than `in_thread_items` items are built by a process, which takes seconds to start.
    """

    def __init__(
        self, folder: str, items: int, users: int, batch_events: int, nlist: int = 0, in_thread_items: int = 0
    ) -> None:
        self.config = FreshetConfig(
            stream=StreamConfig(user_attributes=["a", "b", "c"]),
            model=ModelConfig(dim=64),
            train=TrainConfig(batch_events=batch_events, publish_in_thread_items=in_thread_items),
            progressive=ProgressiveConfig(sample_fraction=0.0),
            index=IndexConfig(nlist=nlist, min_recall=0.0),
            device="cpu",
            storage_path=folder,
        )
        self.publisher = Publisher(Collectives(), self.config, torch.device("cpu"))
        self.run = _run(self.config, items, users)
        self._items, self._users = items, users
        self._log = partitioned_log(
            Population(items=items, users=users).events(batch_events * _STEPS_OF_LOG), 1
        )
        self._open()
        store = CheckpointStore(self.config.checkpoint_location)
        self.checkpointer: Checkpointer = checkpointer_of(
            self.run, store, Collectives(), at_snapshot=self.publisher.cover
        )

    def close(self) -> None:
        """End threads and processes."""
        self.publisher.close()
        self.checkpointer.close()

    def steps(self, count: int) -> Stretch:
        """So many steps and nothing else."""
        left = [None] * (count + 1)
        return self._while(lambda: bool(left), lambda: left.pop() is None, lambda: "")

    def published(self) -> Stretch:
        """Steps while a full checkpoint is committed and a version of it built."""
        start_new_chain(self.checkpointer)
        before = self.publisher.published
        stretch = self._while(lambda: not self._done, self._begin, self._go_on_to_version)
        self.publisher.wait()
        if self.publisher.published == before:
            raise RuntimeError(f"nothing was published: {self.publisher.problem or self.publisher.last}")
        return stretch

    def saved(self) -> Stretch:
        """Steps while a checkpoint of what has changed is committed."""
        return self._while(lambda: not self._done, self._begin, self._go_on)

    def touch(self, rows: int) -> None:
        """Change so many rows, as training does."""
        for ids in np.array_split(np.arange(1, rows + 1), max(1, rows // 10_000)):
            lookup = self.run.table.lookup(np.full(ids.shape[0], ITEM, np.int16), np.ascontiguousarray(ids))
            lookup.rows_UD.grad = torch.full_like(lookup.rows_UD, 0.01)
            self.run.table.apply_gradients(lookup, 0.01)

    def _while(
        self, goes_on: Callable[[], bool], begin: Callable[[], object], between: Callable[[], str]
    ) -> Stretch:
        clock, examples, steps, pauses, cpu = Clock(), 0, 0, [], []
        self._done = False
        started, cpu_started, what = time.perf_counter(), time.thread_time(), "begin"
        begin()
        while goes_on():
            pauses.append((time.perf_counter() - started, what))
            cpu.append(time.thread_time() - cpu_started)
            examples += self._step()
            steps += 1
            started, cpu_started = time.perf_counter(), time.thread_time()
            what = between()
            if not what:
                begin()
        stretch = Stretch(clock.read(examples), steps, pauses, cpu)
        print(json.dumps(stretch.figures()), file=sys.stderr, flush=True)
        return stretch

    def _begin(self) -> None:
        self.checkpointer.begin(self.run.step)

    def _go_on(self) -> str:
        committed = self._advance()
        self._done = self.checkpointer.idle
        return "commit" if committed is not None else "copy"

    def _go_on_to_version(self) -> str:
        if self.checkpointer.idle:
            self._done = not self.publisher.busy
            return "build"
        committed = self._advance()
        if committed is not None:
            self.publisher.start(committed, [], self.run.catalogue.item_count)
        return "commit" if committed is not None else "copy"

    def _advance(self) -> Checkpoint | None:
        committed = self.checkpointer.advance() if self.checkpointer.ready else None
        self.checkpointer.copy_some()
        return committed

    def _step(self) -> int:
        run = self.run
        if run.source.finished:
            self._open()
        batch = run.batcher.next_batch(self.config.train.batch_events)
        prepared = run.train_step.prepare(batch, run.step)
        run.train_step.train(prepared, run.step)
        run.count_step(batch, prepared.global_targets.events)
        return int(prepared.global_targets.events)

    def _open(self) -> None:
        source = MemorySource(self._log, [0])
        stream = (
            self.config.stream,
            source,
            self.run.users,
            self.run.catalogue,
            NoDeadLetters(),
            self.run.stream.admission,
        )
        self.run._opened = (source, Batcher(*stream), NoDeadLetters())  # type: ignore[assignment]


def _run(config: FreshetConfig, items: int, users: int) -> TrainingRun:
    run = TrainingRun.create(config, [0], Collectives(), torch.device("cpu"))
    run.catalogue.apply(Population(items=items, users=users).catalogue())
    for first in range(0, items, 100_000):
        ids = np.arange(first, min(first + 100_000, items)) + 1
        run.table.add(np.full(ids.shape[0], ITEM, np.int16), ids)
    rng = np.random.default_rng(1)
    for first in range(0, users, 100_000):
        ids = np.arange(first, min(first + 100_000, users)) + 1
        count = ids.shape[0] * _EVENTS_OF_USER
        starts = np.arange(ids.shape[0] + 1) * _EVENTS_OF_USER
        item_N = rng.integers(1, items + 1, count)
        run.users.append(ids, key_hashes_of_users(ids), starts, item_N, np.zeros(count, np.int64))
        run.ledger.partitions[0].add(
            np.repeat(ids, _EVENTS_OF_USER), first + np.arange(count), np.zeros(count, np.int64)
        )
    return run


if __name__ == "__main__":
    sys.exit(main())
