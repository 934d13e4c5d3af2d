"""What a part of the model adds on a stream: progressive HR@10 with it and without it, on the same events.

    python tests/benchmarks/stream_ablation.py [--json FILE] [--data DIR] [--seeds N] [--without KEY=VALUE] [KEY=VALUE]

All events of a data set, in time order, on a topic of a broker of its own; the real worker reads them once with the
settings of `freshet train`, and once more with those of `--without` (may be repeated; default: no contrastive losses,
which makes EPIDTN of CL-EPIDTN). Both sides score the same events before they are trained on, among all items, the
user's seen ones removed. The ratio is HR@10 with the part over HR@10 without it on the second half of the stream. Its
interval is a bootstrap over blocks of 500 trained events, paired by block and averaged over the seeds: events that
stand together are not independent.
"""

import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import numpy.typing as npt
import torch

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.config import ProgressiveConfig
from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.measuring.significance import PerQuery, compare
from cluster.evaluation.protocol.data import Tables, prepare
from deploy.command.config_loading import load_offline_config
from deploy.datasets.datasets import fetch, load
from streaming.local_broker.broker import LocalBroker
from tests.benchmarks.support.command import benchmark_parser, finish
from tests.benchmarks.support.stream_passes import fill_topics, log_of, train_rank

PARTITIONS = 4
BLOCK_EVENTS = 500
_NEVER_S = 1e9
# A file's order inside a second is an artifact.
DEFAULTS = ["protocol.shuffle_ties=true", "device=cpu"]
WITHOUT = ["model.contrastive_weight=0"]


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--data", type=Path, help="folder of a data set; default: ml-100k, downloaded")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1 to N")
    parser.add_argument("--without", action="append", metavar="KEY=VALUE", help="what switches the part off")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of both sides")
    arguments = parser.parse_args()
    without = arguments.without or WITHOUT
    result = measure(arguments.data, arguments.overrides, without, range(1, arguments.seeds + 1))
    return finish(result, arguments.json)


def measure(folder: Path | None, overrides: list[str], without: list[str], seeds: range) -> dict[str, Any]:
    """Both sides with every seed, over one topic."""
    found = load(folder or fetch("ml-100k"))
    tables = Tables(found.name, found.interactions, found.items, found.users)
    sides: dict[str, list[dict[str, Any]]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as scratch, LocalBroker(Path(scratch) / "kafka") as broker:
        base = one_pass(
            load_offline_config(None, [*DEFAULTS, *overrides]), broker.bootstrap_servers, Path(scratch)
        )
        fill_topics(base.stream, tables, log_of(prepare(tables, base).interactions), PARTITIONS)
        for seed in seeds:
            for side, switches in (("with", []), ("without", without)):
                config = load_offline_config(None, [*DEFAULTS, f"seed={seed}", *overrides, *switches])
                config = one_pass(config, broker.bootstrap_servers, Path(scratch) / f"{side}-{seed}")
                torch.set_num_threads(config.train.threads_per_worker)
                sides[side].append(trained(config))
                _say(f"seed {seed}, {side}: progressive HR@10 {sides[side][-1]['hr10']:.4f}")
    return {
        "name": "stream_ablation",
        "baseline": f"the same model with {' '.join(without)}, on the same events",
        **verdict(sides["with"], sides["without"]),
        "with": [_told(run) for run in sides["with"]],
        "without": [_told(run) for run in sides["without"]],
        "settings": {
            "data": tables.name,
            "seeds": len(seeds),
            "overrides": overrides,
            "partitions": PARTITIONS,
        },
    }


def one_pass(config: OfflineConfig, bootstrap_servers: str, storage: Path) -> OfflineConfig:
    """`freshet train` to the end of the topic, every event scored first, nothing published."""
    train = replace(config.train, bounded=True, checkpoint_every_s=_NEVER_S, publish_every_s=0, init_from="")
    validation = ProgressiveConfig(sample_fraction=1.0, baselines=False, bin_events=BLOCK_EVENTS)
    stream = replace(config.stream, bootstrap_servers=bootstrap_servers)
    return replace(config, train=train, progressive=validation, stream=stream, storage_path=str(storage))


def trained(config: OfflineConfig) -> dict[str, Any]:
    """One run: hits and sample of each block of the second half."""
    started = time.perf_counter()
    train_rank(0, config)
    checkpoint = CheckpointStore(Path(config.storage_path) / "checkpoints").newest()
    assert checkpoint is not None, f"no checkpoint in {config.storage_path}"
    curve = checkpoint.manifest["curve"]
    sample, hits = (np.asarray(curve[name]) for name in ("sample", "hits"))
    later = slice(sample.shape[0] // 2, None)
    return {
        "hr10": float(hits[later].sum() / sample[later].sum()),
        "events": int(checkpoint.manifest["events_trained"]),
        "wall_s": time.perf_counter() - started,
        "hits": hits[later],
        "sample": sample[later],
    }


def verdict(having: list[dict[str, Any]], lacking: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratio and interval of HR@10 with the part over that without it."""
    sample = having[0]["sample"]
    for run in (*having, *lacking):
        assert np.array_equal(run["sample"], sample), "the two sides scored different events"
    numerator = np.stack([_mean_hits(having), _mean_hits(lacking)], axis=1)
    found = compare({"hr10": PerQuery(numerator, sample.astype(np.float64))})["hr10"][0]
    return {
        "ratio": 1 + found.gain,
        "ratio_low": 1 + found.gain_low,
        "ratio_high": 1 + found.gain_high,
        "difference": found.difference,
        "difference_low": found.low,
        "difference_high": found.high,
        "scored_events": int(sample.sum()),
    }


def _mean_hits(runs: list[dict[str, Any]]) -> npt.NDArray[np.float64]:
    mean: npt.NDArray[np.float64] = np.mean([run["hits"] for run in runs], axis=0)
    return mean


def _told(run: dict[str, Any]) -> dict[str, Any]:
    return {name: run[name] for name in ("hr10", "events", "wall_s")}


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
