"""CPU time of a step with 10 k known items and users against one with millions: a step must not know their number.

    python tests/benchmarks/scale.py [--json FILE] [--items N [N ...]] [--users N [N ...]] [--steps N]
                                     [--batch-events N [N ...]] [--table N [N ...]]

Two runs train on the same events, of users and items among the first 10,000, in turns, step by step, on one thread: one
knows 10,000 items and users with their rows, categories, attributes and histories, the other as many items, or users,
as asked for. Settings are the defaults, but that neither ranks events among all items, which
`progressive.exact_max_items` would end in the large run alone. Sampled events are answered by a live version of the
run's own items, and what that costs after the first answer counts to the step.

`ratio` is the CPU seconds of the small run over those of the large one: the median over steps and the mean of the
answers, the smallest of the sizes.

A table on standard error says what a step, a checkpoint, a resume, and a refresh cost at each size of `--table`, each
measured in a process of its own (`support/scale_costs.py`).
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from cluster.collectives import Collectives
from cluster.config import FreshetConfig, ProgressiveConfig, TrainConfig
from cluster.training.served.answering_process import AnsweringProcess
from cluster.training.served.validation import ServedValidation
from cluster.training.state.run import TrainingRun
from model.features import ITEM, USER
from retrieval.config import IndexConfig
from streaming.batches.batcher import Batcher
from streaming.config import StreamConfig
from tests.benchmarks.support.command import benchmark_parser, finish
from tests.benchmarks.support.scale_costs import as_table, costs_of
from tests.benchmarks.support.synthetic import Population
from tests.support.index_versions import publish_version
from tests.support.memory_source import MemorySource, NoDeadLetters, partitioned_log

SMALL = 10_000
REQUIRED_RATIO = 1 / 1.15
_WARMUP = 5
_KNOWN_EVENTS = 8
# Lists need not be good ones: every search reads as many vectors as it would in a version that was tuned.
_INDEX = IndexConfig(
    nlist=1024, nprobe=8, build_iterations=1, max_imbalance=1e9, min_recall=0.0, device="cpu"
)


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--items", type=int, nargs="*", default=[1_000_000, 3_000_000])
    parser.add_argument("--users", type=int, nargs="*", default=[2_000_000])
    parser.add_argument("--batch-events", type=int, nargs="+", default=[256, 4096])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--table", type=int, nargs="*", default=[SMALL, 1_000_000])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [(items, SMALL) for items in arguments.items] + [(SMALL, users) for users in arguments.users]
    rows = [
        measure(items, users, events, arguments.steps)
        for items, users in sizes
        for events in arguments.batch_events
    ]
    table = [costs_of(items) for items in arguments.table]
    if table:
        print(as_table(table), file=sys.stderr)
    worst = min(row["ratio"] for row in rows)
    result = {
        "name": "scale",
        "baseline": f"the same steps with {SMALL:,} known items and users",
        "ratio": worst,
        "required": REQUIRED_RATIO,
        "passed": worst >= REQUIRED_RATIO,
        "steps": rows,
        "table": table,
    }
    return finish(result, arguments.json)


def measure(items: int, users: int, events: int, steps: int) -> dict[str, Any]:
    """CPU seconds of a step with few and with many known items or users."""
    with tempfile.TemporaryDirectory() as folder:
        small, large = (
            _Scene(known, events, steps + _WARMUP, Path(folder) / name)
            for name, known in (("small", (SMALL, SMALL)), ("large", (items, users)))
        )
        seconds: list[list[float]] = [[], []]
        for step in range(steps + _WARMUP):
            if step == _WARMUP:
                small.begin_answers()
                large.begin_answers()
            for scene, spent in zip((small, large), seconds, strict=True):
                started = time.process_time()
                scene.step(step)
                spent.append(time.process_time() - started)
        few, many = (spent[_WARMUP:] for spent in seconds)
        costs = [
            statistics.median(of) + scene.answers_s / steps for scene, of in ((small, few), (large, many))
        ]
        try:
            return {
                "items": items,
                "users": users,
                "batch_events": events,
                "ratio": costs[0] / costs[1],
                "ratios": [round(a / b, 3) for a, b in zip(few, many, strict=True)],
                **{name: cost * 1e3 for name, cost in zip(("baseline_cpu_ms", "cpu_ms"), costs, strict=True)},
                "answers_share": large.answers_s / sum(many),
                "baseline_answers_share": small.answers_s / sum(few),
                "answered": large.answered,
                "baseline_answered": small.answered,
            }
        finally:
            small.close()
            large.close()


class _Scene:
    """A run that knows so many items and users, its events, and its live version."""

    def __init__(self, known: tuple[int, int], events: int, steps: int, storage: Path) -> None:
        items, users = known
        stream = StreamConfig(user_attributes=["a", "b", "c"])
        config = FreshetConfig(
            stream=stream,
            train=TrainConfig(batch_events=events),
            progressive=ProgressiveConfig(exact_max_items=1),
        )
        self._run = TrainingRun.create(config, [0], Collectives(), torch.device("cpu"))
        self._run.catalogue.apply(Population(items=items, users=users).catalogue())
        for table, count in ((ITEM, items), (USER, users)):
            for ids in _in_pieces(count):
                self._run.table.add(np.full(ids.shape[0], table, np.int16), ids)
        _remember(self._run, users)
        self._events = events
        log = partitioned_log(Population(items=SMALL, users=SMALL).events(events * steps), 1)
        source = MemorySource(log, [0])
        self._batcher = Batcher(stream, source, self._run.users, self._run.catalogue, NoDeadLetters())
        self._run._opened = (source, self._batcher, None)
        published = publish_version(self._run, storage, _INDEX)
        self._trained_s = 0.0
        self._served = ServedValidation(
            published.progressive,
            lambda: True,
            lambda: AnsweringProcess(published),
            # Of this run's steps alone: the other run's are on the same thread.
            lambda: self._trained_s,
        )

    def begin_answers(self) -> None:
        """Wait for the first one."""
        deadline = time.monotonic() + 300
        while self.answered == 0:
            assert time.monotonic() < deadline, "no answer from the live version"
            time.sleep(0.05)

    def step(self, step: int) -> None:
        started, run = time.thread_time(), self._run
        batch = self._batcher.next_batch(self._events)
        prepared = run.train_step.prepare(batch, step)
        run.progressive.score(batch, prepared)
        run.train_step.train(prepared, step)
        self._served.offer(batch, step, run.events_trained)
        run.count_step(batch, prepared.global_targets.events)
        self._trained_s += time.thread_time() - started

    @property
    def answers_s(self) -> float:
        """CPU seconds of the answers after the first one."""
        return self._served.spent_s

    @property
    def answered(self) -> int:
        """Events that were scored."""
        sample: Any = self._served.to_json()["sample"]
        return int(sum(sample))

    def close(self) -> None:
        self._served.close()


def _remember(run: TrainingRun, users: int) -> None:
    """Some events of every user."""
    rng = np.random.default_rng(0)
    for ids in _in_pieces(users):
        start_R = np.arange(ids.shape[0] + 1) * _KNOWN_EVENTS
        items = rng.integers(1, SMALL + 1, start_R[-1])
        key = np.zeros(ids.shape[0], np.int32)
        run.users.append(ids, key, start_R, items, np.zeros_like(items))


def _in_pieces(count: int) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    return [np.arange(first, min(first + 100_000, count)) + 1 for first in range(0, count, 100_000)]


if __name__ == "__main__":
    sys.exit(main())
