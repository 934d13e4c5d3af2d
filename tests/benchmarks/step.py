"""The full system with one worker against a bare PyTorch loop over the same model and the same batches.

    python tests/benchmarks/step.py [--json FILE] [--runs N] [--steps N] [--batch-events N] [--baseline TREE] …

Ours reads a real Kafka topic, packs batches, chooses candidates, looks rows up, trains, updates rows and ledger. The
baseline has every batch ready in memory as tensors and trains the same model with `nn.Embedding(sparse=True)`,
SparseAdam and AdamW. One thread each, alternating runs in one process. Not in the window: checkpoints,
publishing, and, without `--validation`, validation. The ratio is examples per CPU second, ours over the baseline's.

`--baseline TREE` also compares with another checkout, on the same batches without Kafka. The share of the FLOP floor is
the time that the matrix products of a step would take at this machine's best rate, over the step's time.
"""

import os
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from cluster.collectives import Collectives
from cluster.training.state.run import TrainingRun
from model.config import ModelConfig
from streaming.config import StreamConfig
from streaming.local_broker.broker import LocalBroker
from tests.benchmarks.support.bare_loop import BareLoop, make_ready
from tests.benchmarks.support.command import add_window_options, benchmark_parser, finish, window_of
from tests.benchmarks.support.synthetic import Population
from tests.benchmarks.support.trees import against_tree, flops_of, sgemm_flops_per_s
from tests.benchmarks.support.window import (
    Timing,
    Window,
    benchmark_config,
    cpus_of_others,
    fill_topics,
    timed_window,
    window_batches,
)

REQUIRED_RATIO, REQUIRED_SHARE = 1.5, 0.35
REQUIRED_OF_TREE = {256: 2.0, 1024: 1.5}
"""Over commit faedaf7, by the events of a step."""


def main() -> int:
    parser = benchmark_parser(__doc__)
    add_window_options(parser, runs=5, steps=Window.steps, batch_events=Window.batch_events)
    parser.add_argument("--baseline", type=Path, help="a checkout of the commit to compare with")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, LocalBroker(Path(folder) / "kafka") as broker:
        stream = StreamConfig(bootstrap_servers=broker.bootstrap_servers)
        result = measure(stream, *window_of(arguments), arguments.runs, arguments.baseline)
    return finish(result, arguments.json)


def measure(
    stream: StreamConfig,
    population: Population,
    window: Window,
    model: ModelConfig,
    runs: int,
    baseline: Path | None = None,
) -> dict[str, Any]:
    """Alternating runs on topics that do not exist yet."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        fill_topics(stream, population, window)
        config = benchmark_config(stream, model, window, Path(folder) / "run")
        run = TrainingRun.create(config, list(range(window.partitions)), Collectives(), torch.device("cpu"))
        run.catalogue.apply(population.catalogue())
        batches = window_batches(config, population, window)
        ready, first_rows = make_ready(run, batches)
        ours, bare = [], []
        for _ in range(runs):
            bare.append(BareLoop(config, first_rows).timed(ready, window.warmup))
            ours.append(timed_window(config, population, window))
            if ours[-1].examples != bare[-1].examples:
                raise RuntimeError(f"trained {ours[-1].examples} events, the baseline {bare[-1].examples}")
        loop, steps = BareLoop(config, first_rows), range(window.warmup, len(ready))
        flops = flops_of(lambda: [loop.step(ready[k], k) for k in steps])
        floor_s = flops / sgemm_flops_per_s()
        settings = {**vars(window), **vars(population), "dim": model.dim, "layers": model.layers}
        found = report(ours, bare, floor_s, settings)
        if baseline is not None:
            sizes = {"dim": model.dim, "layers": model.layers}
            found["tree"] = tree = against_tree(
                baseline, batches, Path(folder), sizes, warmup=window.warmup, steps=len(steps), runs=runs
            )
            required = REQUIRED_OF_TREE.get(window.batch_events, 0.0)
            found["passed"] = bool(found["passed"]) and tree["ratio"] >= required
    return found


def report(
    ours: list[Timing], bare: list[Timing], floor_s: float, settings: dict[str, object]
) -> dict[str, Any]:
    """Medians and ratios of paired runs; `floor_s` is the least time of their matrix products."""
    by_wall = [o.examples_per_s / b.examples_per_s for o, b in zip(ours, bare, strict=True)]
    by_cpu = [o.examples_per_cpu_s / b.examples_per_cpu_s for o, b in zip(ours, bare, strict=True)]
    ratio = statistics.median(by_cpu)
    share = floor_s / statistics.median(t.cpu_s for t in ours)
    enough = settings["batch_events"] != 1024 or share >= REQUIRED_SHARE
    return {
        "name": "step",
        "baseline": "plain PyTorch loop: nn.Embedding(sparse=True), SparseAdam, AdamW, batches ready in memory",
        "ratio": ratio,
        "ratios": by_cpu,
        "ratio_by_wall": statistics.median(by_wall),
        "ratios_by_wall": by_wall,
        "required": REQUIRED_RATIO,
        "floor_share": share,
        "passed": ratio >= REQUIRED_RATIO and enough,
        "examples_per_cpu_s": statistics.median(t.examples_per_cpu_s for t in ours),
        "examples_per_s": statistics.median(t.examples_per_s for t in ours),
        "baseline_examples_per_s": statistics.median(t.examples_per_s for t in bare),
        "cpus_of_others": [round(cpus_of_others([t]), 2) for t in (*ours, *bare)],
        "settings": settings,
        "runs": [asdict(t) for t in ours],
        "baseline_runs": [asdict(t) for t in bare],
    }


if __name__ == "__main__":
    sys.exit(main())
