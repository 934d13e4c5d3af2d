"""CPU time of a step with 10 k known items and users against one with millions: a step must not know their number.

    python tests/benchmarks/scale.py [--json FILE] [--items N [N ...]] [--users N [N ...]] [--steps N]
                                     [--batch-events N [N ...]] [--table N [N ...]] [--ranks N]

Two runs train on the same events, of users and items among the first 10,000, in turns, step by step, on one thread: one
knows 10,000 items and users with their rows, categories, attributes and histories, the other as many items, or users,
as asked for. Settings are the defaults, but that neither ranks events among all items, which
`progressive.exact_max_items` would end in the large run alone. Sampled events are answered by a live version of the
run's own items, and what that costs after the first answer counts to the step. With `--ranks 2`, two processes share
events and rows over gloo, and their CPU seconds are summed.

`ratio` is the CPU seconds of the small run over those of the large one: the median over steps and the mean of the
answers, the smallest of the sizes.

A table on standard error says what a step, a checkpoint, a resume, and a refresh cost at each size of `--table`, each
measured in a process of its own (`support/scale_costs.py`).
"""

import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
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
from streaming.events.partitioner import key_hashes_of_users, partition_of_users
from tests.benchmarks.support.command import benchmark_parser, finish
from tests.benchmarks.support.scale_costs import as_table, costs_of
from tests.benchmarks.support.synthetic import Population
from tests.support.index_versions import publish_version
from tests.support.memory_source import MemorySource, NoDeadLetters, partitioned_log
from tests.support.ranks import run_on_ranks

SMALL = 10_000
REQUIRED_RATIO = 1 / 1.15
_WARMUP = 5
_KNOWN_EVENTS = 8
_RANKS_S = 7200.0
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
    parser.add_argument("--ranks", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [(items, SMALL) for items in arguments.items] + [(SMALL, users) for users in arguments.users]
    rows = [
        measure(items, users, events, arguments.steps, arguments.ranks)
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


def measure(items: int, users: int, events: int, steps: int, ranks: int = 1) -> dict[str, Any]:
    """CPU seconds of a step with few and with many known items or users."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (items, users, events, steps, Path(folder))
        alone = ranks == 1
        spent = (
            [_spent(0, *arguments)] if alone else run_on_ranks(_spent, ranks, *arguments, timeout_s=_RANKS_S)
        )
    few_S, many_S = (np.sum([one.step_s[scene] for one in spent], axis=0) for scene in (0, 1))
    answers = [sum(one.answers_s[scene] for one in spent) for scene in (0, 1)]
    costs = [
        float(np.median(of_S)) + answers_s / steps
        for of_S, answers_s in zip((few_S, many_S), answers, strict=True)
    ]
    return {
        "items": items,
        "users": users,
        "batch_events": events,
        "ranks": ranks,
        "ratio": costs[0] / costs[1],
        "ratios": [round(a / b, 3) for a, b in zip(few_S.tolist(), many_S.tolist(), strict=True)],
        **{name: cost * 1e3 for name, cost in zip(("baseline_cpu_ms", "cpu_ms"), costs, strict=True)},
        "answers_share": answers[1] / float(many_S.sum()),
        "baseline_answers_share": answers[0] / float(few_S.sum()),
        "answered": sum(one.answered[1] for one in spent),
        "baseline_answered": sum(one.answered[0] for one in spent),
    }


@dataclass(frozen=True)
class _Spent:
    """CPU seconds of one rank's steps and of its answers, and its answers; for the small and the large scene."""

    step_s: tuple[list[float], list[float]]
    answers_s: tuple[float, float]
    answered: tuple[int, int]


def _spent(rank: int, items: int, users: int, events: int, steps: int, folder: Path) -> _Spent:
    """The steps of one rank, alternating between the scenes."""
    scenes = small, large = (
        _Scene((SMALL, SMALL), events, steps + _WARMUP, folder / "small"),
        _Scene((items, users), events, steps + _WARMUP, folder / "large"),
    )
    seconds: tuple[list[float], list[float]] = ([], [])
    try:
        for step in range(steps + _WARMUP):
            if step == _WARMUP:
                for scene in scenes:
                    scene.begin_answers()
            for scene, spent in zip(scenes, seconds, strict=True):
                started = time.process_time()
                scene.step(step)
                spent.append(time.process_time() - started)
        few, many = (spent[_WARMUP:] for spent in seconds)
        return _Spent((few, many), (small.answers_s, large.answers_s), (small.answered, large.answered))
    finally:
        for scene in scenes:
            scene.close()


class _Scene:
    """A rank of a run that knows so many items and users, its events, and the run's live version."""

    def __init__(self, known: tuple[int, int], events: int, steps: int, storage: Path) -> None:
        items, users = known
        stream = StreamConfig(user_attributes=["a", "b", "c"])
        config = FreshetConfig(
            stream=stream,
            train=TrainConfig(batch_events=events),
            progressive=ProgressiveConfig(exact_max_items=1),
        )
        comm = Collectives()
        self._run = TrainingRun.create(config, [comm.rank], comm, torch.device("cpu"))
        self._run.catalogue.apply(Population(items=items, users=users).catalogue())
        for table, count in ((ITEM, items), (USER, users)):
            for ids in _in_pieces(count):
                tables = np.full(ids.shape[0], table, np.int16)
                own = self._run.table.owners(tables, ids) == comm.rank
                self._run.table.add(tables[own], ids[own])
        _remember(self._run, users, comm)
        self._events = events // comm.world
        # Partitions do not have exactly the same number of events, and each step takes as many of each.
        needed = int(events * steps * (1 if comm.world == 1 else 1.2)) + 1024
        log = partitioned_log(Population(items=SMALL, users=SMALL).events(needed), comm.world)
        source = MemorySource(log, [comm.rank])
        self._batcher = Batcher(stream, source, self._run.users, self._run.catalogue, NoDeadLetters())
        self._run._opened = (source, self._batcher, None)
        published = publish_version(self._run, storage, _INDEX)
        self._trained_s, self._asks = 0.0, comm.rank == 0
        self._served = ServedValidation(
            published.progressive if self._asks else replace(published.progressive, served_cpu_share=0.0),
            lambda: True,
            lambda: AnsweringProcess(published),
            # Of this run's steps alone: the other run's are on the same thread.
            lambda: self._trained_s,
        )

    def begin_answers(self) -> None:
        """Wait for the first one; rank 0 alone asks."""
        deadline = time.monotonic() + 300
        while self._asks and self.answered == 0:
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


def _remember(run: TrainingRun, users: int, comm: Collectives) -> None:
    """Some events of every user of this rank."""
    rng = np.random.default_rng(0)
    for everybody in _in_pieces(users):
        ids = everybody[partition_of_users(everybody, comm.world) == comm.rank]
        start_R = np.arange(ids.shape[0] + 1) * _KNOWN_EVENTS
        items = rng.integers(1, SMALL + 1, start_R[-1])
        run.users.append(ids, key_hashes_of_users(ids), start_R, items, np.zeros_like(items))


def _in_pieces(count: int) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    return [np.arange(first, min(first + 100_000, count)) + 1 for first in range(0, count, 100_000)]


if __name__ == "__main__":
    sys.exit(main())
