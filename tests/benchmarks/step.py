"""The full system with one worker against a bare PyTorch loop over the same model and the same batches.

    python tests/benchmarks/step.py [--json FILE] [--runs N] [--steps N] [--batch-events N] …

Ours reads a real Kafka topic, packs batches, chooses candidates, looks rows up, trains, updates rows and ledger. The
baseline has every batch ready in memory as tensors and trains the same model with `nn.Embedding(sparse=True)`,
SparseAdam and AdamW. One thread each, alternating runs in one process. Not in the window: checkpoints,
publishing, validation. The ratio is examples per second, ours over the baseline's, by wall and by CPU.
"""

import os
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

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
from tests.benchmarks.support.window import (
    Timing,
    Window,
    benchmark_config,
    cpus_of_others,
    fill_topics,
    timed_window,
    window_batches,
)

REQUIRED_RATIO = 0.9


def main() -> int:
    parser = benchmark_parser(__doc__)
    add_window_options(parser, runs=5, steps=Window.steps, batch_events=Window.batch_events)
    arguments = parser.parse_args()
    result = measure(*window_of(arguments), arguments.runs)
    return finish(result, arguments.json)


def measure(population: Population, window: Window, model: ModelConfig, runs: int) -> dict[str, object]:
    """Alternating runs against a broker of its own."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, LocalBroker(Path(folder) / "kafka") as broker:
        stream = StreamConfig(bootstrap_servers=broker.bootstrap_servers)
        fill_topics(stream, population, window)
        config = benchmark_config(stream, model, window, Path(folder) / "run")
        run = TrainingRun.create(config, list(range(window.partitions)), Collectives(), torch.device("cpu"))
        run.catalogue.apply(population.catalogue())
        ready, first_rows = make_ready(run, window_batches(config, population, window))
        ours, bare = [], []
        for _ in range(runs):
            bare.append(BareLoop(config, first_rows).timed(ready, window.warmup))
            ours.append(timed_window(config, population, window))
            if ours[-1].examples != bare[-1].examples:
                raise RuntimeError(f"trained {ours[-1].examples} events, the baseline {bare[-1].examples}")
    settings = {**vars(window), **vars(population), "dim": model.dim, "layers": model.layers}
    return report(ours, bare, settings)


def report(ours: list[Timing], bare: list[Timing], settings: dict[str, object]) -> dict[str, object]:
    """Medians and ratios of paired runs."""
    by_wall = [o.examples_per_s / b.examples_per_s for o, b in zip(ours, bare, strict=True)]
    by_cpu = [o.examples_per_cpu_s / b.examples_per_cpu_s for o, b in zip(ours, bare, strict=True)]
    ratio = statistics.median(by_wall)
    return {
        "name": "step",
        "baseline": "plain PyTorch loop: nn.Embedding(sparse=True), SparseAdam, AdamW, batches ready in memory",
        "ratio": ratio,
        "ratios": by_wall,
        "ratio_by_cpu": statistics.median(by_cpu),
        "ratios_by_cpu": by_cpu,
        "required": REQUIRED_RATIO,
        "passed": ratio >= REQUIRED_RATIO,
        "examples_per_s": statistics.median(t.examples_per_s for t in ours),
        "baseline_examples_per_s": statistics.median(t.examples_per_s for t in bare),
        "cpus_of_others": [round(cpus_of_others([t]), 2) for t in (*ours, *bare)],
        "settings": settings,
        "runs": [asdict(t) for t in ours],
        "baseline_runs": [asdict(t) for t in bare],
    }


if __name__ == "__main__":
    sys.exit(main())
