"""SASRec here against the one of RecTools, with equal sizes, loss and batch: examples per second, and HR@10.

    python tests/benchmarks/sasrec.py [--data DIR] [--json FILE] [--runs N] [--steps N] [--epochs N] [--loss L] …

RecTools lives in a virtual environment of its own (tests/benchmarks/.venv-peer-sasrec, made on first use, with the
torch of this one) and runs as a process of its own. An example is a position with a loss. Both sides have one thread
and as many targets a step: RecTools takes a number of users, ours the mean number of their targets. Steps are timed
in alternating runs, each with a fresh model, reading of batches included. Then both are trained for `--epochs`, the
epoch with the best HR@10 on the same validation users is kept, and the leave-one-out test is ranked by the same code:
all items, seen ones left out.

`--loss sampled_softmax`: both draw `--negatives` uniformly, RecTools for each position, ours once for the step; the
targets of a step are candidates too here, and log q is corrected. `--loss BCE` is the paper's loss with one negative
for each position on both sides. `both`, the default, asks for the ratio and the HR@10 of either.
"""

import os
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.protocol.batches import PassSettings, TrainingPasses
from cluster.evaluation.protocol.data import EvaluationData, prepare
from cluster.evaluation.systems.fitting import FitPlan, Fitted, fit
from cluster.evaluation.systems.systems import SYSTEMS, create
from model.metrics import hit_rate
from tests.benchmarks.support.command import benchmark_parser, finish
from tests.benchmarks.support.peer import PeerFit, PeerRun, fit_peer, peer_python, timed_peer
from tests.benchmarks.support.sequences import AMAZON_BEAUTY, tables_of
from tests.benchmarks.support.window import Clock, Timing, cpus_of_others

REQUIRED_RATIO = 1.5
SYSTEM_OF_LOSS = {"sampled_softmax": "sasrec", "BCE": "sasrec_bce"}
_POOL = 500
"""Uniform negatives of a step that SASRecBCE draws one of for each event."""


@dataclass(frozen=True)
class Sizes:
    """What is equal on both sides, and how much is run.

    Attributes:
        dim, layers, heads, window, dropout: of the model.
        negatives: of the sampled softmax.
        batch_users: users of a step of the peer; ours has as many targets as they have on average.
        learning_rate, peer_learning_rate: of Adam, constant on both sides as RecTools has it (ours warms up).
        steps, warmup: of a timed run.
        runs: timed pairs.
        epochs: of the full run of either side.
    """

    dim: int = 64
    layers: int = 2
    heads: int = 2
    window: int = 50
    dropout: float = 0.2
    negatives: int = 100
    batch_users: int = 128
    learning_rate: float = 2.8e-3
    peer_learning_rate: float = 2.8e-3
    steps: int = 40
    warmup: int = 5
    runs: int = 3
    epochs: int = 6
    seed: int = 1


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--data", type=Path, default=AMAZON_BEAUTY, help="folder of the data set")
    parser.add_argument("--loss", choices=[*SYSTEM_OF_LOSS, "both"], default="both")
    for name in ("runs", "steps", "epochs", "negatives", "batch_users", "seed"):
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=getattr(Sizes, name))
    for name in ("dropout", "learning_rate", "peer_learning_rate"):
        parser.add_argument("--" + name.replace("_", "-"), type=float, default=getattr(Sizes, name))
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        parser.error(f"there is no data set at {arguments.data}: name its folder with --data")
    names = [name for name in vars(arguments) if name in Sizes.__dataclass_fields__]
    sizes = Sizes(**{name: getattr(arguments, name) for name in names})
    losses = list(SYSTEM_OF_LOSS) if arguments.loss == "both" else [arguments.loss]
    result = measure(arguments.data, losses, sizes)
    return finish(result, arguments.json)


def measure(folder: Path, losses: list[str], sizes: Sizes) -> dict[str, Any]:
    """Every loss; the first one's figures on top, `passed` if all pass."""
    torch.set_num_threads(1)
    peer_python()
    tables = tables_of(folder)
    results = {loss: measure_loss(tables, loss, sizes) for loss in losses}
    return {
        "name": "sasrec",
        "data": tables.name,
        **results[losses[0]],
        "passed": all(result["passed"] for result in results.values()),
        "settings": asdict(sizes),
        **{f"with {loss}": results[loss] for loss in losses[1:]},
    }


def measure_loss(tables: Any, loss: str, sizes: Sizes) -> dict[str, Any]:
    """Alternating timed runs, then a full one of either side."""
    config = our_config(loss, sizes, batch_targets=1)
    data = prepare(tables, config)
    config = our_config(loss, sizes, peer_targets(data, sizes))
    peer = peer_settings(loss, sizes)
    theirs, ours = [], []
    for _ in range(sizes.runs):
        theirs.append(timed_peer(data, peer, steps=sizes.steps, warmup=sizes.warmup))
        ours.append(timed_ours(data, loss, config, sizes))
    peer_fit = fit_peer(data, peer, validation_queries(data, config), epochs=sizes.epochs)
    fitted, test = fit_ours(data, loss, config)
    return report(loss, config.fit.batch_targets, ours, theirs, (fitted, test), peer_fit)


def our_config(loss: str, sizes: Sizes, batch_targets: int) -> OfflineConfig:
    """The comparison's own SASRec, at the peer's sizes, with inner products and no temperature."""
    tuned = {
        "model.dim": sizes.dim,
        "model.layers": sizes.layers,
        "model.heads": sizes.heads,
        "model.history_length": sizes.window,
        "model.dropout": sizes.dropout,
        "model.similarity": "dot",
        "model.temperature": 1.0,
        "model.uniform_negatives": sizes.negatives if loss == "sampled_softmax" else _POOL,
        "fit.schedule": "constant",
        "fit.passes": sizes.epochs,
        "fit.batch_targets": batch_targets,
        "fit.learning_rate": sizes.learning_rate,
        "fit.row_learning_rate": sizes.learning_rate,
    }
    return SYSTEMS[SYSTEM_OF_LOSS[loss]].settings_of(OfflineConfig(device="cpu", seed=sizes.seed), tuned, {})


def peer_settings(loss: str, sizes: Sizes) -> dict[str, Any]:
    """The same for RecTools."""
    return {
        "dim": sizes.dim,
        "layers": sizes.layers,
        "heads": sizes.heads,
        "window": sizes.window,
        "dropout": sizes.dropout,
        "loss": loss,
        "negatives": sizes.negatives if loss == "sampled_softmax" else 1,
        "batch_users": sizes.batch_users,
        "learning_rate": sizes.peer_learning_rate,
        "seed": sizes.seed,
    }


def peer_targets(data: EvaluationData, sizes: Sizes) -> int:
    """Mean targets of a step of the peer: of a user, all training events but the first, at most the window."""
    targets_U = np.minimum(data.split.train_U - 1, sizes.window)
    targets_U = targets_U[targets_U > 0]
    return round(float(targets_U.mean() * sizes.batch_users))


def validation_queries(data: EvaluationData, config: OfflineConfig) -> Any:
    """Those that `fit` validates on."""
    return data.split.validation.some(config.fit.validation_users, 0)


def timed_ours(data: EvaluationData, loss: str, config: OfflineConfig, sizes: Sizes) -> Timing:
    """A fresh model, as many steps as the peer's, batches cut from the events on the way."""
    recommender = create(
        SYSTEMS[SYSTEM_OF_LOSS[loss]], config, data.catalogue, data.item_ids, torch.device("cpu")
    )
    passes = TrainingPasses(data.split, PassSettings.of(config))
    examples, clock = 0, Clock()
    for step, batch in enumerate(passes.batches(1)):
        if step == sizes.warmup:
            examples, clock = 0, Clock()
        if step == sizes.warmup + sizes.steps:
            break
        recommender.train_on(batch)
        examples += len(batch.column("weight").flatten())
    return clock.read(examples)


def fit_ours(data: EvaluationData, loss: str, config: OfflineConfig) -> tuple[Fitted, float]:
    """All passes, back to the best one, and its HR@10 on the test."""
    recommender = create(
        SYSTEMS[SYSTEM_OF_LOSS[loss]], config, data.catalogue, data.item_ids, torch.device("cpu")
    )
    plan = replace(FitPlan.of(config), exclude_seen=True)
    fitted = fit(recommender, data.split, data.item_ids, plan)
    ranking = plan.rank(recommender, data.interactions, data.split.test, data.item_ids)
    return fitted, hit_rate(ranking.rank_G, 10)


def report(
    loss: str,
    batch_targets: int,
    ours: list[Timing],
    theirs: list[PeerRun],
    fitted: tuple[Fitted, float],
    peer_fit: PeerFit,
) -> dict[str, Any]:
    """Medians and ratios of paired runs, and HR@10 of the full ones."""
    by_wall = [a.examples_per_s / b.examples_per_s for a, b in zip(ours, theirs, strict=True)]
    by_cpu = [a.examples_per_cpu_s / b.examples_per_cpu_s for a, b in zip(ours, theirs, strict=True)]
    ratio = statistics.median(by_wall)
    own, test = fitted
    return {
        "baseline": f"SASRec of {theirs[0].version}, loss {loss}",
        "loss": loss,
        "ratio": ratio,
        "ratios": by_wall,
        "ratio_by_cpu": statistics.median(by_cpu),
        "ratios_by_cpu": by_cpu,
        "required": REQUIRED_RATIO,
        "hr@10": test,
        "peer_hr@10": peer_fit.test,
        "passed": ratio >= REQUIRED_RATIO and test >= peer_fit.test,
        "examples_per_s": statistics.median(t.examples_per_s for t in ours),
        "peer_examples_per_s": statistics.median(t.examples_per_s for t in theirs),
        "examples_per_cpu_s": statistics.median(t.examples_per_cpu_s for t in ours),
        "peer_examples_per_cpu_s": statistics.median(t.examples_per_cpu_s for t in theirs),
        "targets_per_step": batch_targets,
        "peer_targets_per_step": statistics.mean(t.examples / t.steps for t in theirs),
        "validation_hr@10": own.validation,
        "peer_validation_hr@10": peer_fit.validation,
        "peer_full_run": asdict(peer_fit.run),
        "cpus_of_others": [round(cpus_of_others([t]), 2) for t in ours],
        "runs": [asdict(t) for t in ours],
        "peer_runs": [asdict(t) for t in theirs],
    }


if __name__ == "__main__":
    sys.exit(main())
