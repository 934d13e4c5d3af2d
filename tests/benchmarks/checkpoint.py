"""A delta checkpoint against a full one, and training with a checkpoint every 30 s against training without.

    python tests/benchmarks/checkpoint.py [--json FILE] [--runs N] [--rows N] [--share S] [--every S] [--windows N] …

One rank in memory, dim 64, row-wise Adam. First, alternately: rows are touched and a delta is committed; then a full
one is; each with its bytes, its time from begin to commit, and how long it held up training. Then windows of as many
steps as take `--every` seconds, alternately without and with one checkpoint (a delta of what the window trained on),
written by the thread while the steps go on. Ratios are medians of paired runs.
"""

import os
import statistics
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pyarrow as pa
import torch

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.checkpoints.writing import Checkpointer
from cluster.collectives import Collectives
from cluster.config import FreshetConfig, ProgressiveConfig, TrainConfig
from cluster.training.state.run import TrainingRun
from cluster.training.state.worker_state import checkpointer_of
from cluster.training.steps.guarded_step import GuardedStep
from model.config import ModelConfig
from streaming.batches.batcher import Batcher
from streaming.config import StreamConfig
from tests.benchmarks.support.command import benchmark_parser, finish
from tests.benchmarks.support.synthetic import Population
from tests.benchmarks.support.window import Clock
from tests.support.checkpointing import start_new_chain
from tests.support.memory_source import MemorySource, NoDeadLetters, partitioned_log

MOST_BYTES, MOST_TIME, LEAST_THROUGHPUT, MOST_STALL = 0.10, 0.10, 0.97, 0.10
PARTITIONS, BATCH = 4, 256
POPULATION, EVENTS = Population(users=2_000, items=50_000), 300_000


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--share", type=float, default=0.05, help="of the rows that a delta has")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between checkpoints")
    parser.add_argument("--windows", type=int, default=5, help="pairs of windows; 0 = none")
    parser.add_argument("--validation", action="store_true", help="windows with progressive validation")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            Path(folder),
            rows=arguments.rows,
            runs=arguments.runs,
            share=arguments.share,
            every=arguments.every,
            pairs=arguments.windows,
            validation=arguments.validation,
        )
    result = {
        "name": "checkpoint",
        "baseline": "a full checkpoint; training without checkpoints",
        **found,
        "required": {
            "bytes_ratio": MOST_BYTES,
            "time_ratio": MOST_TIME,
            "stall_share": MOST_STALL,
            "full_copy_share": MOST_STALL,
            "throughput_ratio": LEAST_THROUGHPUT,
        },
        "settings": {k: v for k, v in vars(arguments).items() if k != "json"},
    }
    result["passed"] = passed(result)
    return finish(result, arguments.json)


def measure(
    folder: Path, *, rows: int, runs: int, share: float, every: float, pairs: int, validation: bool
) -> dict[str, Any]:
    """All ratios; arguments as on the command line."""
    run = big_run(rows, validation=validation)
    checkpointer = checkpointer_of(run, CheckpointStore(folder, keep=1), Collectives())
    try:
        sizes = deltas_and_fulls(run, checkpointer, runs, share)
        return {**sizes, **(windows(run, checkpointer, pairs, every) if pairs else {})}
    finally:
        checkpointer.close()


def passed(result: dict[str, Any]) -> bool:
    """Whether every ratio that was measured is on its side of the border.

    A full checkpoint's pauses count all together: that training waits often and briefly is waiting too.
    """
    small = result["bytes_ratio"] <= MOST_BYTES and result["time_ratio"] <= MOST_TIME
    return (
        small
        and result["stall_share"] <= MOST_STALL
        and result["full_copy_share"] <= MOST_STALL
        and result.get("throughput_ratio", 1) >= LEAST_THROUGHPUT
    )


def big_run(rows: int, *, validation: bool = False) -> TrainingRun:
    """A run whose table has so many rows, with state as after some training."""
    config = FreshetConfig(
        stream=StreamConfig(seen_length=50),
        model=ModelConfig(dim=64),
        train=TrainConfig(batch_events=BATCH, checkpoint_full_every=1000, checkpoint_full_share=1000.0),
        progressive=ProgressiveConfig() if validation else ProgressiveConfig(sample_fraction=0.0),
        device="cpu",
    )
    run = TrainingRun.create(config, list(range(PARTITIONS)), Collectives(), torch.device("cpu"))
    run.catalogue.apply(POPULATION.catalogue())
    run.table.add(np.zeros(rows, np.int16), np.arange(1, rows + 1))
    _open_stream(run)
    while not run.source.finished:  # histories are full, or later windows would have more to compute
        run.batcher.next_batch(8192)
    _open_stream(run)
    return run


def _open_stream(run: TrainingRun) -> None:
    source = MemorySource(_log(), run.partitions)
    stream = (run.config.stream, source, run.users, run.catalogue, NoDeadLetters(), run.stream.admission)
    run._opened = (source, Batcher(*stream), None)


@cache
def _log() -> dict[int, pa.RecordBatch]:
    return partitioned_log(POPULATION.events(EVENTS), PARTITIONS)


def deltas_and_fulls(run: TrainingRun, checkpointer: Checkpointer, runs: int, share: float) -> dict[str, Any]:
    """Alternately a delta of so many rows and a full one, nothing else going on."""
    rows = len(run.table)
    rng = np.random.default_rng(1)
    full = [_written(run, checkpointer)]
    delta = []
    for _ in range(runs):
        _touch(run, rng.choice(rows, int(rows * share), replace=False) + 1)
        delta.append(_written(run, checkpointer))
        start_new_chain(checkpointer)
        full.append(_written(run, checkpointer))
    pairs = list(zip(delta, full[1:], strict=True))
    return {
        "bytes_ratio": statistics.median(d["bytes"] / f["bytes"] for d, f in pairs),
        "time_ratio": statistics.median(d["seconds"] / f["seconds"] for d, f in pairs),
        "stall_share": statistics.median(d["stall_s"] / f["seconds"] for d, f in pairs),
        "full_copy_share": statistics.median(f["stall_s"] / f["seconds"] for f in full[1:]),
        "full_longest_pause_share": statistics.median(f["pause_s"] / f["seconds"] for f in full[1:]),
        "deltas": delta,
        "fulls": full[1:],
    }


def _touch(run: TrainingRun, ids: np.ndarray) -> None:
    for some in np.array_split(ids, max(1, len(ids) // 10_000)):
        lookup = run.table.lookup(np.zeros(len(some), np.int16), np.ascontiguousarray(some))
        lookup.rows_UD.grad = torch.full_like(lookup.rows_UD, 0.01)
        run.table.apply_gradients(lookup, 0.01)


def _written(run: TrainingRun, checkpointer: Checkpointer) -> dict[str, float]:
    """Bytes, seconds from begin to commit, and how long the loop of a worker would have been held up."""
    checkpointer._thread.submit(time.sleep, 0).result()  # what the last one has made old is removed first
    started = time.perf_counter()
    run.step += 1
    pause, committed = 0.0, None
    checkpointer.begin(run.step)
    pause = max(pause, checkpointer.stalls_s[-1])
    while not checkpointer.idle:
        before = checkpointer.stalls_s[-1]
        if checkpointer.ready:
            committed = checkpointer.advance()
        else:
            checkpointer.copy_some()
            time.sleep(0.002)  # a short step
        pause = max(pause, checkpointer.stalls_s[-1] - before)
    assert committed is not None
    return {
        "bytes": committed.size,
        "seconds": time.perf_counter() - started,
        "stall_s": checkpointer.stalls_s[-1],
        "pause_s": pause,
    }


def windows(run: TrainingRun, checkpointer: Checkpointer, pairs: int, every_s: float) -> dict[str, Any]:
    """Alternating windows of the same steps; in the second of a pair one checkpoint begins after a third of them."""
    warm = _window(run, None, 10)
    steps = max(10, int(every_s / (warm.wall_s / 10)))
    without, with_ = [], []
    for pair in range(pairs):
        for writes in (False, True) if pair % 2 == 0 else (True, False):
            (with_ if writes else without).append(_window(run, checkpointer if writes else None, steps))
    ratios = [a.wall_s / b.wall_s for a, b in zip(without, with_, strict=True)]
    return {
        "throughput_ratio": statistics.median(ratios),
        "throughput_ratios": ratios,
        "throughput_ratio_by_cpu": statistics.median(
            a.cpu_s / b.cpu_s for a, b in zip(without, with_, strict=True)
        ),
        "examples_per_s": statistics.median(w.examples_per_s for w in with_),
        "steps": steps,
    }


def _window(run: TrainingRun, checkpointer: Checkpointer | None, steps: int) -> Any:
    _open_stream(run)
    guarded = GuardedStep(run.train_step, Collectives(), torch.device("cpu"), run.progressive)
    examples = 0
    clock = Clock()
    for step in range(steps):
        if checkpointer is not None:
            if step == steps // 3:
                checkpointer.begin(run.step)
            elif checkpointer.ready:
                checkpointer.advance()
            checkpointer.copy_some()
        batch = run.batcher.next_batch(BATCH // PARTITIONS)
        outcome = guarded.train(batch, run.step)
        run.ledger.add_batch(outcome.trained)
        examples += outcome.events
        run.step += 1
    timing = clock.read(examples)
    if checkpointer is not None and not checkpointer.idle:
        raise RuntimeError(f"the checkpoint was not committed within {steps} steps: lengthen --every")
    return timing


if __name__ == "__main__":
    sys.exit(main())
