"""CPU time of a training step with 10 k known items against one with 1 M: a step must not know the catalogue's size.

    python tests/benchmarks/scale.py [--json FILE] [--items N [N ...]] [--steps N] [--batch-events N [N ...]]

Two runs train on the same events, of items among the first 10,000, in turns, step by step, on one thread: one knows
10,000 items and has their rows, the other as many as asked for. Settings are the defaults, but that neither ranks
events among all items, which `progressive.exact_max_items` would end in the large run alone. `ratio` is the CPU
seconds of the small run over those of the large one: the median over steps, the smallest of the sizes.
"""

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from cluster.collectives import Collectives
from cluster.config import FreshetConfig, ProgressiveConfig, TrainConfig
from cluster.training.state.run import TrainingRun
from model.features import ITEM
from streaming.batches.batcher import Batcher
from streaming.config import StreamConfig
from tests.benchmarks.support.command import benchmark_parser, finish
from tests.benchmarks.support.synthetic import Population
from tests.support.memory_source import MemorySource, NoDeadLetters, partitioned_log

SMALL = 10_000
REQUIRED_RATIO = 1 / 1.15
_WARMUP = 5


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--batch-events", type=int, nargs="+", default=[256, 4096])
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        measure(items, events, arguments.steps)
        for items in arguments.items
        for events in arguments.batch_events
    ]
    worst = min(row["ratio"] for row in rows)
    result = {
        "name": "scale",
        "baseline": f"the same steps with {SMALL:,} known items",
        "ratio": worst,
        "required": REQUIRED_RATIO,
        "passed": worst >= REQUIRED_RATIO,
        "steps": rows,
    }
    return finish(result, arguments.json)


def measure(items: int, events: int, steps: int) -> dict[str, Any]:
    """CPU seconds of a step with few and with many known items."""
    runs = [_run(known, events, steps + _WARMUP) for known in (SMALL, items)]
    seconds: list[list[float]] = [[], []]
    for step in range(steps + _WARMUP):
        for (run, batcher), spent in zip(runs, seconds, strict=True):
            started = time.process_time()
            _step(run, batcher, events, step)
            spent.append(time.process_time() - started)
    few, many = (spent[_WARMUP:] for spent in seconds)
    ratios = [small / large for small, large in zip(few, many, strict=True)]
    return {
        "items": items,
        "batch_events": events,
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "cpu_ms": statistics.median(many) * 1e3,
        "baseline_cpu_ms": statistics.median(few) * 1e3,
    }


def _run(known: int, events: int, steps: int) -> tuple[TrainingRun, Batcher]:
    stream = StreamConfig(user_attributes=["a", "b", "c"])
    config = FreshetConfig(
        stream=stream,
        train=TrainConfig(batch_events=events),
        progressive=ProgressiveConfig(exact_max_items=1),
    )
    run = TrainingRun.create(config, [0], Collectives(), torch.device("cpu"))
    run.catalogue.apply(Population(items=known).catalogue())
    for first in range(0, known, 100_000):
        ids = np.arange(first, min(first + 100_000, known)) + 1
        run.table.add(np.full(ids.shape[0], ITEM, np.int16), ids)
    log = partitioned_log(Population(items=SMALL).events(events * steps), 1)
    batcher = Batcher(stream, MemorySource(log, [0]), run.users, run.catalogue, NoDeadLetters())
    return run, batcher


def _step(run: TrainingRun, batcher: Batcher, events: int, step: int) -> None:
    batch = batcher.next_batch(events)
    prepared = run.train_step.prepare(batch, step)
    run.progressive.score(batch, prepared)
    run.train_step.train(prepared, step)
    run.ledger.add_batch(batch)


if __name__ == "__main__":
    sys.exit(main())
