"""What a step, a checkpoint, a resume, and a refresh cost with so many known items: prints JSON.

    python tests/benchmarks/support/scale_costs.py ITEMS [DIM] [EVENTS]

One rank in memory, one thread, default settings otherwise. Each size runs in a process of its own, so that its peak
memory is its own. The refresh of more than 3 million items is left out: `refresh_memory.py` measures it on two ranks.
"""

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[3]))

import numpy as np
import torch

from cluster.checkpoints.checkpoint import Checkpoint, CheckpointStore
from cluster.checkpoints.writing import Checkpointer
from cluster.collectives import Collectives
from cluster.config import FreshetConfig, ProgressiveConfig, TrainConfig
from cluster.training.refresh import refresh_from
from cluster.training.state.run import TrainingRun
from cluster.training.state.worker_state import checkpointer_of, restore_checkpoint
from model.config import ModelConfig
from model.features import ITEM
from streaming.batches.batcher import Batcher
from streaming.config import StreamConfig
from tests.benchmarks.support.synthetic import Population
from tests.support.anonymous_memory import AnonymousPeak
from tests.support.memory_source import MemorySource, NoDeadLetters, partitioned_log

_BUSY_ITEMS = 10_000
_STEPS, _WARMUP = 10, 3
_STEP_S = 0.002
_MOST_REFRESHED = 3_000_000
_CPU = torch.device("cpu")


def costs_of(items: int) -> dict[str, Any]:
    """`costs` in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, str(items)], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def as_table(found: Sequence[dict[str, Any]]) -> str:
    """The costs in Markdown, a row for each number of items."""
    lines = [
        "| items | step | full checkpoint | delta checkpoint | resume | refresh |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for one in found:
        full, delta, resume, refresh = (
            one.get(name, {}) for name in ("full_checkpoint", "delta_checkpoint", "resume", "refresh")
        )
        cells = (
            f"{one['items']:,}",
            f"{one['step']['cpu_s'] * 1e3:.0f} ms",
            *(
                f"{saved['cpu_s']:.2f} s, {saved['bytes'] / 1e6:,.0f} MB, "
                f"longest pause {saved['longest_pause_s'] * 1e3:.0f} ms"
                for saved in (full, delta)
            ),
            *(
                f"{read['cpu_s']:.2f} s, +{read['peak_bytes'] / 1e6:,.0f} MB" if read else "not measured here"
                for read in (resume, refresh)
            ),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", "Seconds are CPU seconds; + is anonymous memory at its peak."])


def costs(items: int, dim: int, events: int) -> dict[str, Any]:
    """CPU seconds, pauses, bytes, and peak memory of each task."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = FreshetConfig(
            stream=StreamConfig(user_attributes=["a", "b", "c"]),
            model=ModelConfig(dim=dim),
            train=TrainConfig(batch_events=events, workers=1),
            progressive=ProgressiveConfig(exact_max_items=1),
            storage_path=folder,
            device="cpu",
        )
        store = CheckpointStore(config.checkpoint_location)
        found = _trained(config, store, items)
        gc.collect()
        checkpoint = store.newest()
        assert checkpoint is not None
        with _measured(found, "resume"):
            run = TrainingRun.create(config, [0], Collectives(), _CPU)
            restore_checkpoint(run, checkpoint, Collectives())
        del run
        gc.collect()
        if items <= _MOST_REFRESHED:
            _refresh(config, checkpoint, found)
    return {"items": items, "dim": dim, "batch_events": events, **found}


def _refresh(config: FreshetConfig, checkpoint: Checkpoint, found: dict[str, Any]) -> None:
    report = Path(config.storage_path) / "refresh.json"
    with _measured(found, "refresh"):
        refresh_from(config, Collectives(), _CPU, checkpoint_path=checkpoint.location, report_path=report)
    told = json.loads(report.read_text())
    assert told["version"], told["gate"]
    found["refresh"] |= {key: told[key] for key in ("nlist", "nprobe", "recall", "seconds")}
    version = Path(config.index_location) / told["version"]
    found["refresh"]["bytes"] = sum(file.stat().st_size for file in version.iterdir())


def _trained(config: FreshetConfig, store: CheckpointStore, items: int) -> dict[str, Any]:
    """Steps, a full checkpoint, and a delta of a few steps."""
    run = TrainingRun.create(config, [0], Collectives(), _CPU)
    run.catalogue.apply(Population(items=items).catalogue())
    for first in range(0, items, 100_000):
        ids = np.arange(first, min(first + 100_000, items)) + 1
        run.table.add(np.full(ids.shape[0], ITEM, np.int16), ids)
    quota = config.train.batch_events
    log = partitioned_log(Population(items=min(items, _BUSY_ITEMS)).events(quota * 2 * (_STEPS + _WARMUP)), 1)
    source = MemorySource(log, [0])
    batcher = Batcher(config.stream, source, run.users, run.catalogue, NoDeadLetters())
    run._opened = (source, batcher, None)  # type: ignore[assignment]
    spent = [_step(run, batcher, quota) for _ in range(_WARMUP + _STEPS)][_WARMUP:]
    found: dict[str, Any] = {"step": {"cpu_s": statistics.median(spent)}}
    checkpointer = checkpointer_of(run, store, Collectives())
    with _measured(found, "full_checkpoint"):
        written = _commit(run, checkpointer)
    found["full_checkpoint"] |= written
    for _ in range(_STEPS):
        _step(run, batcher, quota)
    with _measured(found, "delta_checkpoint"):
        written = _commit(run, checkpointer)
    found["delta_checkpoint"] |= written
    checkpointer.close()
    return found


def _step(run: TrainingRun, batcher: Batcher, quota: int) -> float:
    started = time.process_time()
    batch = batcher.next_batch(quota)
    prepared = run.train_step.prepare(batch, run.step)
    run.progressive.score(batch, prepared)
    run.train_step.train(prepared, run.step)
    run.count_step(batch, prepared.global_targets.events)
    return time.process_time() - started


def _commit(run: TrainingRun, checkpointer: Checkpointer) -> dict[str, Any]:
    """A checkpoint while nothing is trained: its bytes and its longest pause."""
    longest, committed = 0.0, None

    def paused(work: Callable[[], Any]) -> Any:
        nonlocal longest
        started = time.perf_counter()
        result = work()
        longest = max(longest, time.perf_counter() - started)
        return result

    paused(lambda: checkpointer.begin(run.step))
    while not checkpointer.idle:
        if checkpointer.ready:
            committed = paused(checkpointer.advance)
        else:
            paused(checkpointer.copy_some)
            time.sleep(_STEP_S)
    assert committed is not None, checkpointer.problem
    return {"bytes": committed.links[-1].size, "longest_pause_s": longest}


@contextmanager
def _measured(found: dict[str, Any], name: str) -> Iterator[None]:
    """CPU and wall seconds, and by how many bytes anonymous memory rose above what it was before."""
    started, cpu = time.perf_counter(), time.process_time()
    with AnonymousPeak() as peak:
        yield
    found[name] = {
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - started,
        "peak_bytes": peak.bytes,
    }


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    costs(2_000, 64, 256)  # compiles and loads what the first use does
    print(json.dumps(costs(*(numbers + [10_000, 64, 4096][len(numbers) :]))))
