"""CL-EPIDTN on packed sequences against the same model on one row per event, on the same targets.

    python tests/benchmarks/packing.py [--data DIR] [--json FILE] [--runs N] [--steps N] [--targets N]

Packed: the training batches of an evaluation, a row per stretch of a user's events with all of them as targets. Per
event: the same targets of the same step, each in a row of its own behind its last W items (`support/per_event.py`).
Both are trained by the same TrainedRecommender with the same candidates and all losses on. First, with dropout 0 and
sequences that fit the window, every loss term and the gradients of a few steps must be equal; then both are timed
with the default dropout, one thread, alternating runs, batches ready in memory. The ratio is examples per second,
ours over the baseline's, by wall and by CPU.

The baseline has all that is not packing: its short rows share rows of 64 tokens too, and its views are encoded from
the same code, which encodes all rows for one anchor per user. So the ratio without contrastive losses stands beside.

Without the data set's folder the sequences are synthetic, with the lengths of amazon_beauty.
"""

import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cluster.collectives import Collectives, CrossRankGather
from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.protocol.batches import PassSettings, TrainingPasses
from cluster.evaluation.protocol.data import EvaluationData, prepare
from cluster.evaluation.protocol.protocols import Split
from cluster.evaluation.systems.trained import TrainedRecommender
from model.cl_epidtn import CLEPIDTN
from tests.benchmarks.support.command import benchmark_parser, finish
from tests.benchmarks.support.per_event import per_event
from tests.benchmarks.support.sequences import AMAZON_BEAUTY, tables_or_synthetic
from tests.benchmarks.support.window import Clock, Timing, cpus_of_others

REQUIRED_RATIO = 3.0
LOSS_TOLERANCE = 1e-5
"""Of |a - b| / (1 + |b|), for every loss term."""
GRADIENT_TOLERANCE = 1e-4
"""Of the norm of the gradients' difference by the norm of the gradient, of the towers and of the rows."""


@dataclass(frozen=True)
class Size:
    """How much is trained.

    Attributes:
        targets: events to predict in a step.
        warmup: steps before the clock starts, and before losses are compared.
        steps: steps under the clock, in each run.
        checked: steps whose losses and gradients are compared.
        runs: of each side.
    """

    targets: int
    warmup: int = 3
    steps: int = 12
    checked: int = 4
    runs: int = 5


@dataclass(frozen=True)
class Differences:
    """The largest of the steps compared."""

    loss: float
    gradient: float


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--data", type=Path, default=AMAZON_BEAUTY, help="folder of a data set")
    parser.add_argument("--runs", type=int, default=Size.runs)
    parser.add_argument("--steps", type=int, default=Size.steps)
    parser.add_argument("--targets", type=int, default=OfflineConfig().fit.batch_targets)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tables = tables_or_synthetic(arguments.data)
    config = OfflineConfig(device="cpu")
    size = Size(arguments.targets, steps=arguments.steps, runs=arguments.runs)
    result = {"name": "packing", "data": tables.name, **measure(prepare(tables, config), config, size)}
    return finish(result, arguments.json)


def measure(data: EvaluationData, config: OfflineConfig, size: Size) -> dict[str, Any]:
    """Equality on short sequences, then alternating runs with and without the contrastive losses."""
    model = replace(config.model, dropout=0.0)
    short = within_window(data.split, model.history_length)
    fitting = compare(data, replace(config, model=model), short, size)
    all_sequences = compare(data, replace(config, model=model), data.split, size)
    packed, alone = timed_pairs(data, config, size)
    plain = replace(config, model=replace(config.model, contrastive_weight=0.0))
    without = [
        paired(*timed_pairs(data, plain, size), key) for key in ("examples_per_s", "examples_per_cpu_s")
    ]
    settings = {
        "targets": size.targets,
        "steps": size.steps,
        "window": config.model.history_length,
        "dim": config.model.dim,
        "layers": config.model.layers,
        "uniform_negatives": config.model.uniform_negatives,
        "dropout": config.model.dropout,
        **shapes(data, config, size),
    }
    return report(packed, alone, fitting, all_sequences, without, settings)


def within_window(split: Split, window: int) -> Split:
    """Only the users whose training events fit the window: of longer ones a packed row's older states have seen
    items that no row of a single event holds."""
    return replace(split, train_U=np.where(split.train_U <= window, split.train_U, 0))


def step_batches(split: Split, config: OfflineConfig, targets: int, count: int) -> list[pa.RecordBatch]:
    """The first packed batches of passes over the training events."""
    passes = TrainingPasses(split, replace(PassSettings.of(config), batch_targets=targets))
    batches: list[pa.RecordBatch] = []
    number = 1
    while len(batches) < count:
        batches += passes.batches(number)
        number += 1
    return batches[:count]


def fresh(data: EvaluationData, config: OfflineConfig) -> TrainedRecommender:
    """A new one, the same every time."""
    torch.manual_seed(config.seed)
    model = CLEPIDTN(config.model, len(config.stream.user_attributes))
    return TrainedRecommender(model, data.catalogue, config, config.fit, torch.device("cpu"))


def compare(data: EvaluationData, config: OfflineConfig, split: Split, size: Size) -> Differences:
    """Losses and gradients of one model on both forms of the same steps, after a warm-up."""
    recommender = fresh(data, config)
    batches = step_batches(split, config, size.targets, size.warmup + size.checked)
    for batch in batches[: size.warmup]:
        recommender.train_on(batch)
    loss, gradient = 0.0, 0.0
    for step, batch in enumerate(batches[size.warmup :], start=size.warmup):
        terms, towers, rows = gradients(recommender, config, batch, step)
        others, other_towers, other_rows = gradients(
            recommender, config, per_event(batch, config.model.history_length), step
        )
        loss = max(loss, *(abs(a - b) / (1 + abs(b)) for a, b in zip(terms, others, strict=True)))
        gradient = max(gradient, relative(towers, other_towers), relative(rows, other_rows))
    return Differences(loss, gradient)


def gradients(
    recommender: TrainedRecommender, config: OfflineConfig, batch: pa.RecordBatch, step: int
) -> tuple[list[float], Tensor, Tensor]:
    """Every loss term of a step, the towers' gradient in one piece, and that of every row of the table."""
    prepared_step = recommender._train_step.prepare(batch, step)
    model, lookup = recommender.model.train(), prepared_step.lookup
    gather = CrossRankGather(Collectives(), torch.device("cpu"))
    model.zero_grad(set_to_none=True)
    terms = model(
        lookup.rows_UD,
        prepared_step.queries,
        prepared_step.items,
        prepared_step.targets,
        gather,
        seed=config.seed,
        step=step,
    )
    gather.close(terms.total).backward()
    towers = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
    rows = torch.zeros(len(recommender.table), recommender.table.dim)
    rows[torch.from_numpy(lookup.local_R)] = lookup.rows_UD.grad[1:]
    return [float(value) for value in terms.detached().values()], towers, rows


def relative(a: Tensor, b: Tensor) -> float:
    """Norm of the difference by the norm."""
    return float((a - b).norm() / b.norm())


def timed_pairs(data: EvaluationData, config: OfflineConfig, size: Size) -> tuple[list[Timing], list[Timing]]:
    """Alternating runs of the packed form and of single events, each side going on with its own model."""
    packed = step_batches(data.split, config, size.targets, size.warmup + size.steps)
    alone = [per_event(batch, config.model.history_length) for batch in packed]
    ours, baseline = trainer(data, config, packed, size.warmup), trainer(data, config, alone, size.warmup)
    pairs = [(baseline(), ours()) for _ in range(size.runs)]
    if any(a.examples != b.examples for a, b in pairs):
        raise RuntimeError(f"the two forms have different numbers of targets: {pairs}")
    return [b for _, b in pairs], [a for a, _ in pairs]


def trainer(
    data: EvaluationData, config: OfflineConfig, batches: list[pa.RecordBatch], warmup: int
) -> Callable[[], Timing]:
    """A run over the batches behind the warm-up, which has been done."""
    recommender = fresh(data, config)
    for batch in batches[:warmup]:
        recommender.train_on(batch)

    def run() -> Timing:
        clock = Clock()
        for batch in batches[warmup:]:
            recommender.train_on(batch)
        return clock.read(sum(len(batch.column("weight").flatten()) for batch in batches[warmup:]))

    return run


def shapes(data: EvaluationData, config: OfflineConfig, size: Size) -> dict[str, float]:
    """Items that either form reads for each target."""
    batches = step_batches(data.split, config, size.targets, size.warmup + size.steps)
    targets = sum(len(batch.column("weight").flatten()) for batch in batches)
    packed = sum(len(batch.column("items").flatten()) for batch in batches)
    rows = [per_event(batch, config.model.history_length) for batch in batches]
    alone = sum(len(batch.column("items").flatten()) for batch in rows)
    return {"tokens_per_target": packed / targets, "baseline_tokens_per_target": alone / targets}


def paired(ours: list[Timing], baseline: list[Timing], key: str) -> list[float]:
    """Ratio of each pair of runs."""
    return [getattr(a, key) / getattr(b, key) for a, b in zip(ours, baseline, strict=True)]


def report(
    packed: list[Timing],
    alone: list[Timing],
    fitting: Differences,
    all_sequences: Differences,
    without: list[list[float]],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Medians and ratios of paired runs."""
    by_wall, by_cpu = (paired(packed, alone, key) for key in ("examples_per_s", "examples_per_cpu_s"))
    ratio = statistics.median(by_wall)
    equal = fitting.loss <= LOSS_TOLERANCE and fitting.gradient <= GRADIENT_TOLERANCE
    return {
        "baseline": "CL-EPIDTN on one row per event, same targets, candidates and view masks",
        "ratio": ratio,
        "ratios": by_wall,
        "ratio_by_cpu": statistics.median(by_cpu),
        "ratios_by_cpu": by_cpu,
        "ratio_without_contrastive": statistics.median(without[0]),
        "ratio_without_contrastive_by_cpu": statistics.median(without[1]),
        "required": REQUIRED_RATIO,
        "loss_difference": fitting.loss,
        "loss_tolerance": LOSS_TOLERANCE,
        "gradient_difference": fitting.gradient,
        "gradient_tolerance": GRADIENT_TOLERANCE,
        "loss_difference_all_lengths": all_sequences.loss,
        "passed": ratio >= REQUIRED_RATIO and equal,
        "examples_per_s": statistics.median(t.examples_per_s for t in packed),
        "baseline_examples_per_s": statistics.median(t.examples_per_s for t in alone),
        "examples_per_cpu_s": statistics.median(t.examples_per_cpu_s for t in packed),
        "baseline_examples_per_cpu_s": statistics.median(t.examples_per_cpu_s for t in alone),
        "cpus_of_others": [round(cpus_of_others([t]), 2) for t in (*packed, *alone)],
        "settings": settings,
        "runs": [asdict(t) for t in packed],
        "baseline_runs": [asdict(t) for t in alone],
    }


if __name__ == "__main__":
    sys.exit(main())
