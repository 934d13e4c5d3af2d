"""Deltas of 1 M items against a cold full refresh, and what they take from training: CPU seconds, one thread.

    python tests/benchmarks/delta.py [--json FILE] [--items N] [--users N] [--batch-events N] [--steps N] [--nlist N]

One worker in memory, as in `publish.py`. It publishes a version (checkpoint not counted: rows, vectors, centroids,
lists, gates, commit), and makes deltas of it: a share of the items has moved, all of them are encoded, gated, and
committed, with their rows. `ratio` is the CPU seconds of a delta of 1 % over those of the refresh, at most 0.02.
`seconds` has other shares, without the first delta, which opens the version. `trained` is the examples per CPU second
of steps beside two deltas a second with default settings, over those of as many steps before and after without: at
least 0.95. A second is one of the training thread's CPU time, as on a machine that it does not share. The recall gate
of the version is off, because nothing is trained long enough.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import faiss
import numpy as np
import torch

from cluster.collectives import Collectives
from cluster.deltas.publisher import DeltaPublisher
from cluster.observability.delta_figures import DeltaFigures
from model.features import ITEM
from retrieval.config import IndexConfig
from tests.benchmarks.publish import Trainer
from tests.benchmarks.support.command import benchmark_parser, finish
from tests.benchmarks.support.window import Clock

MOST_RATIO, LEAST_TRAINED = 0.02, 0.95
_SHARES = (0.0001, 0.001, 0.01, 0.02)
_REPEATS = 3


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--batch-events", type=int, default=256)
    parser.add_argument("--steps", type=int, default=100, help="steps of a window")
    parser.add_argument("--nlist", type=int, default=0, help="lists of the index; 0 = by the number of items")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sizes = arguments.items, arguments.users, arguments.batch_events, arguments.nlist
        trainer = Trainer(folder, *sizes, in_thread_items=arguments.items)
        try:
            result = measure(trainer, arguments.items, arguments.steps)
        finally:
            trainer.close()
    result["settings"] = {k: v for k, v in vars(arguments).items() if k != "json"}
    return finish(result, arguments.json)


def measure(trainer: Trainer, items: int, steps: int) -> dict[str, Any]:
    """A refresh, deltas of several sizes, and windows of training with and without deltas."""
    trainer.config.index = replace(trainer.config.index, delta_max_items=items, max_delta_share=1.0)
    deltas, figures = _attach(trainer)
    trainer.steps(2)
    refresh_s = _publish(trainer, deltas)
    _turn(deltas, trainer)
    seconds: dict[float, float] = {}
    for share in _SHARES:
        count = max(1, round(share * items))
        costs = []
        for repeat in range(_REPEATS):
            _move(trainer, count, repeat)
            costs.append(_cpu_s(lambda: _turn(deltas, trainer)))
        seconds[share] = statistics.median(costs)
    number = figures.to_json()["number"]
    if number != _REPEATS * len(_SHARES):
        raise RuntimeError(f"{number} deltas were committed: {figures.problem}")
    trained = _trained(trainer, deltas, steps)
    ratio = seconds[0.01] / refresh_s
    return {
        "name": "delta",
        "baseline": "a cold full refresh; the same steps without deltas",
        "items": items,
        "refresh_cpu_s": refresh_s,
        "seconds": {str(share): cost for share, cost in seconds.items()},
        "ratio": ratio,
        "trained": trained,
        "required": {"ratio": MOST_RATIO, "trained": LEAST_TRAINED},
        "passed": ratio <= MOST_RATIO and trained["ratio"] >= LEAST_TRAINED,
    }


def _attach(trainer: Trainer) -> tuple[DeltaPublisher, DeltaFigures]:
    figures = DeltaFigures()
    deltas = DeltaPublisher(Collectives(), trainer.config, torch.device("cpu"), figures=figures)
    deltas.attach(trainer.run.table, trainer.run.catalogue)
    return deltas, figures


def _publish(trainer: Trainer, deltas: DeltaPublisher) -> float:
    """CPU seconds of a version of a checkpoint that is committed before."""
    checkpoint = trainer.checkpointer.finish(trainer.run.step)
    assert checkpoint is not None
    deltas.checkpoint_taken()
    deltas.checkpoint_committed(checkpoint.location)
    deltas.version_begun(checkpoint.location)

    def build() -> None:
        trainer.publisher.start(checkpoint, [], trainer.run.catalogue.item_count)
        trainer.publisher.wait()

    seconds = _cpu_s(build)
    if not trainer.publisher.published:
        raise RuntimeError(f"nothing was published: {trainer.publisher.problem or trainer.publisher.last}")
    return seconds


def _move(trainer: Trainer, count: int, seed: int) -> None:
    """Change the rows of so many items, as training does."""
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(trainer.run.catalogue.item_count, count, replace=False)).astype(np.int64) + 1
    lookup = trainer.run.table.lookup(np.full(count, ITEM, np.int16), ids)
    lookup.rows_UD.grad = torch.full_like(lookup.rows_UD, 0.01)
    trainer.run.table.apply_gradients(lookup, 0.01)


def _turn(deltas: DeltaPublisher, trainer: Trainer) -> None:
    deltas.start(trainer.run.step, trainer.run.events_trained)
    deltas.wait()
    if deltas.error is not None:
        raise deltas.error


def _trained(trainer: Trainer, deltas: DeltaPublisher, steps: int) -> dict[str, Any]:
    """Examples per CPU second with two deltas a second and without, in alternate windows."""
    trainer.config.index = replace(
        trainer.config.index, delta_max_items=IndexConfig().delta_max_items, max_delta_share=1.0
    )
    deltas._writer._waiting = deltas._writer._nothing_waits(trainer.run.catalogue.item_count)
    made = 0

    def between() -> None:
        nonlocal last_s, made
        if deltas.ready and time.thread_time() - last_s >= deltas.interval_s:
            last_s, made = time.thread_time(), made + 1
            deltas.start(trainer.run.step, trainer.run.events_trained)

    last_s = time.thread_time()
    trainer.steps(steps)
    paces: dict[str, list[float]] = {"with": [], "without": []}
    for kind in ("without", "with", "without", "with", "without"):
        clock, examples = Clock(), 0
        for _ in range(steps):
            examples += trainer._step()
            if kind == "with":
                between()
        deltas.wait()
        paces[kind].append(clock.read(examples).examples_per_cpu_s)
    return {
        "ratio": statistics.mean(paces["with"]) / statistics.mean(paces["without"]),
        "examples_per_cpu_s": paces,
        "deltas": made,
    }


def _cpu_s(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    sys.exit(main())
