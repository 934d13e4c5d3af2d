"""Streaming equals batch: the streaming trainer over a topic, read N times, against `fit` over the same events at rest.

    python tests/benchmarks/stream_parity.py [--json FILE] [--data DIR] [--preset NAME] [--ranks N] [KEY=VALUE]...

Both sides have the preset and the passes of `freshet evaluate`, the seed, training events of a leave-one-out split,
events per step and learning rates; both mask only what a user had before an event. Batch: `fit` in passes of shuffled
pieces; its best pass by validation is ranked. Stream: the events in time order on a topic of a broker of its own, read
by the real worker once per pass, each started from the one before (`train.init_from`), its rates those of the middle of
`fit`'s pass; the last checkpoint is ranked, for the same test queries by the same code. The ratio is HR@10, the
stream's over the batch's.
"""

import os
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from cluster.device import resolve_device
from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.measuring.ranking import rank
from cluster.evaluation.protocol.data import EvaluationData, Tables, prepare
from cluster.evaluation.protocol.protocols import Queries
from cluster.evaluation.systems.fitting import FitPlan, PassReport, fit
from cluster.evaluation.systems.systems import REFERENCE, SYSTEMS, create
from deploy.command.options import offline_settings
from deploy.datasets.datasets import fetch, load
from model.metrics import hit_rate, ndcg
from model.retrieval_model import RetrievalModel
from streaming.local_broker.broker import LocalBroker
from tests.benchmarks.support.command import benchmark_parser, finish
from tests.benchmarks.support.stream_passes import fill_topics, stream_passes, training_events
from tests.support.checkpoint_recommender import recommender_of

REQUIRED_RATIO = 0.95
PARTITIONS = 4
# A file's order inside a second is an artifact that neither side should learn.
DEFAULTS = ["protocol.shuffle_ties=true", "device=cpu"]
# A server sees the past only, and a stream trains on first events too.
FORCED = ["protocol.kind=leave_one_out", "model.history_mask=past", "fit.first_events=true"]


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--data", type=Path, help="folder of a data set; default: ml-100k, downloaded")
    parser.add_argument(
        "--preset", choices=["default", "paper"], default="default", help="as of freshet evaluate"
    )
    parser.add_argument("--ranks", type=int, default=1, help="processes of the streaming trainer")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of both sides")
    arguments = parser.parse_args()
    config = offline_settings(None, [*DEFAULTS, *arguments.overrides, *FORCED], arguments.preset)
    torch.set_num_threads(config.fit.threads)
    result = measure(arguments.data, config, arguments.ranks)
    result["settings"] |= {"preset": arguments.preset, "overrides": arguments.overrides}
    return finish(result, arguments.json)


def measure(folder: Path | None, config: OfflineConfig, ranks: int) -> dict[str, Any]:
    """Both sides, one after the other."""
    found = load(folder or fetch("ml-100k"))
    tables = Tables(found.name, found.interactions, found.items, found.users)
    data = prepare(tables, config)
    batch = train_at_rest(data, config)
    stream = train_on_stream(tables, data, config, ranks)
    ratio = stream["hr10"] / batch["hr10"] if batch["hr10"] else float("nan")
    return {
        "name": "stream_parity",
        "baseline": "the same model in shuffled passes over the same events at rest (evaluation.systems.fitting)",
        "ratio": ratio,
        "ratio_ndcg10": stream["ndcg10"] / batch["ndcg10"] if batch["ndcg10"] else float("nan"),
        "required": REQUIRED_RATIO,
        "passed": ratio >= REQUIRED_RATIO,
        "stream": stream,
        "batch": batch,
        "settings": {
            "data": tables.name,
            "training_events": int(data.split.train_U.sum()),
            "test_queries": len(data.split.test),
            "passes": config.fit.passes,
            "ranks": ranks,
            "partitions": PARTITIONS,
            "seed": config.seed,
            "model": asdict(config.model),
            "fit": asdict(config.fit),
        },
    }


def train_at_rest(data: EvaluationData, config: OfflineConfig) -> dict[str, Any]:
    """`fit`, and the test as of its best pass."""

    def tell(report: PassReport) -> None:
        _say(f"batch {report.number}/{report.passes}: validation HR@10 {report.validation:.4f}")

    started = time.perf_counter()
    device = resolve_device(config.device)
    recommender = create(SYSTEMS[REFERENCE], config, data.catalogue, data.item_ids, device)
    plan = FitPlan.of(config, tell=tell)
    plan = replace(plan, batches=replace(plan.batches, mask_all=False))
    fitted = fit(recommender, data.split, data.item_ids, plan)
    figures = ranked(recommender, data, data.split.test, config)
    return {
        **figures,
        "best_pass": fitted.best_pass,
        "validation": fitted.validation,
        "wall_s": time.perf_counter() - started,
    }


def train_on_stream(
    tables: Tables, data: EvaluationData, config: OfflineConfig, ranks: int
) -> dict[str, Any]:
    """The worker over the topic, pass by pass, and the test as of the last checkpoint."""
    started, validation = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder, LocalBroker(Path(folder) / "kafka") as broker:
        stream = replace(config.stream, bootstrap_servers=broker.bootstrap_servers)
        config = replace(config, stream=stream)
        fill_topics(stream, tables, training_events(data.split), PARTITIONS)
        for checkpoint in stream_passes(config, Path(folder) / "runs", config.fit.passes, ranks):
            recommender = recommender_of(checkpoint, resolve_device(config.device))
            validation.append(ranked(recommender, data, data.split.validation, config)["hr10"])
            _say(f"stream {len(validation)}/{config.fit.passes}: validation HR@10 {validation[-1]:.4f}")
    figures = ranked(recommender, data, data.split.test, config)
    return {
        **figures,
        "events_per_pass": int(checkpoint.manifest["events_trained"]),
        "steps": checkpoint.step,
        "validation": validation,
        "wall_s": time.perf_counter() - started,
    }


def ranked(
    recommender: RetrievalModel, data: EvaluationData, queries: Queries, config: OfflineConfig
) -> dict[str, float]:
    """Figures of a full ranking."""
    ranks = rank(
        recommender,
        data.interactions,
        queries,
        data.item_ids,
        window=config.model.history_length,
        exclude_seen=config.protocol.exclude_seen,
    ).rank_G
    return {"hr10": hit_rate(ranks, 10), "hr50": hit_rate(ranks, 50), "ndcg10": ndcg(ranks, 10)}


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
