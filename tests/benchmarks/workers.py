"""Two workers of one thread each against one worker of one thread, on the same events with the same global batch.

    python tests/benchmarks/workers.py [--json FILE] [--runs N] [--steps N] [--batch-events N] …

Real processes with a gloo group (as Ray Train would set it up, but without Ray) and a real Kafka; runs alternate. Each
run is the whole worker loop without checkpoints, publishing, and, without `--validation`, validation. The ratio is
examples per CPU second of the busiest worker: what two free cores would give if nobody waited.
"""

import os
import statistics
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

from cluster.config import FreshetConfig
from model.config import ModelConfig
from streaming.config import StreamConfig
from streaming.local_broker.broker import LocalBroker
from tests.benchmarks.support.command import add_window_options, benchmark_parser, finish, window_of
from tests.benchmarks.support.synthetic import Population
from tests.benchmarks.support.window import (
    Timing,
    Window,
    benchmark_config,
    cpus_of_others,
    fill_topics,
    timed_window,
)
from tests.support.ranks import run_on_ranks

REQUIRED_RATIO = 1.8


def main() -> int:
    parser = benchmark_parser(__doc__)
    add_window_options(parser, runs=3, steps=20, batch_events=1024)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, LocalBroker(Path(folder) / "kafka") as broker:
        stream = StreamConfig(bootstrap_servers=broker.bootstrap_servers)
        result = measure(stream, *window_of(arguments), arguments.runs)
    return finish(result, arguments.json)


def measure(
    stream: StreamConfig, population: Population, window: Window, model: ModelConfig, runs: int
) -> dict[str, Any]:
    """Alternating runs of one and of two workers on topics that do not exist yet."""
    with tempfile.TemporaryDirectory() as folder:
        fill_topics(stream, population, window)
        config = benchmark_config(stream, model, window, Path(folder) / "run")
        one, two = [], []
        for _ in range(runs):
            one.append(run_on_ranks(run_rank, 1, config, population, window))
            two.append(run_on_ranks(run_rank, 2, config, population, window))
    settings = {**vars(window), **vars(population), "dim": model.dim, "layers": model.layers}
    return report(one, two, settings)


def run_rank(rank: int, config: FreshetConfig, population: Population, window: Window) -> Timing:
    """One worker's window, in a process of its own."""
    storage = f"{config.storage_path}-{rank}"
    return timed_window(replace(config, storage_path=storage), population, window)


def report(one: list[list[Timing]], two: list[list[Timing]], settings: dict[str, object]) -> dict[str, Any]:
    """Medians and ratios of paired runs; a run's time is that of its slowest worker."""
    one_s, two_s = [max(t.wall_s for t in run) for run in one], [max(t.wall_s for t in run) for run in two]
    one_cpu, two_cpu = [max(t.cpu_s for t in run) for run in one], [max(t.cpu_s for t in run) for run in two]
    ratios = [a / b for a, b in zip(one_s, two_s, strict=True)]
    ratios_by_cpu = [a / b for a, b in zip(one_cpu, two_cpu, strict=True)]
    examples = one[0][0].examples
    if {t.examples for run in one + two for t in run} != {examples}:
        raise RuntimeError("the runs did not train the same number of events")
    ratio = statistics.median(ratios_by_cpu)
    return {
        "name": "workers",
        "baseline": "one worker of one thread",
        "ratio": ratio,
        "ratios": ratios_by_cpu,
        "ratio_by_wall": statistics.median(ratios),
        "ratios_by_wall": ratios,
        "required": REQUIRED_RATIO,
        "passed": ratio >= REQUIRED_RATIO,
        "examples_per_s": examples / statistics.median(two_s),
        "baseline_examples_per_s": examples / statistics.median(one_s),
        "cpus_of_others": [round(cpus_of_others(run), 2) for run in (*one, *two)],
        "settings": settings,
        "runs": [[asdict(t) for t in run] for run in two],
        "baseline_runs": [[asdict(t) for t in run] for run in one],
    }


if __name__ == "__main__":
    sys.exit(main())
