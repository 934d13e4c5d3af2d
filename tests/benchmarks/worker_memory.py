"""Memory of a whole worker while ever new items and users come, with admission, expiry and limits on: flat in the end.

    python tests/benchmarks/worker_memory.py [--json FILE] [--items N] [--publish-every S] [--checkpoint-every S]

`freshet train` with one worker on its own Ray, and a broker of its own; one event of four is of an item that nobody
has seen. The worker process is looked at every half second while it trains, with checkpoints and index versions: memory
that is its own (USS), its share of all (PSS), and what is resident (RSS). The baseline is its own peak between a
quarter and a half of the items; from then on something stays of an item and a user that came (docs/decisions/0041),
some hundred bytes, and the index holds vectors of all items.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pyarrow as pa
import yaml

from cluster.config import FreshetConfig, ProgressiveConfig, TrainConfig
from cluster.observability.progress_file import read_progress
from cluster.tables.config import TableConfig
from deploy.command.children import Child
from model.config import ModelConfig
from streaming.config import StreamConfig
from streaming.kafka.topics import create_topics
from streaming.local_broker.broker import LocalBroker
from streaming.producing.producer import EventProducer
from tests.benchmarks.support.command import benchmark_parser, finish

EVENTS, NEW_ITEMS, NEW_USERS, LIVING = 2048, 512, 64, 4000
# Beyond it something grows that should not: a thousand bytes for each item after the first half.
BYTES_PER_ITEM = 1024


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--items", type=int, default=80_000)
    parser.add_argument("--publish-every", type=float, default=5.0)
    parser.add_argument("--checkpoint-every", type=float, default=5.0)
    arguments = parser.parse_args()
    return finish(measure(arguments), arguments.json)


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder, LocalBroker(Path(folder) / "kafka") as broker:
        config = config_of(broker.bootstrap_servers, Path(folder) / "run", arguments)
        create_topics(config.stream, partitions=1)
        settings = Path(folder) / "settings.yaml"
        settings.write_text(yaml.safe_dump(asdict(config)))
        command = [sys.executable, "-m", "deploy", "train", "--config", str(settings)]
        producer = threading.Thread(target=produce, args=(config, arguments.items))
        producer.start()
        with Child("freshet train", command, Path(folder) / "train.log") as trainer:
            samples = watch(trainer, Path(config.storage_path))
        producer.join()
    return report(samples, arguments)


def config_of(servers: str, storage: Path, arguments: argparse.Namespace) -> FreshetConfig:
    rounds = arguments.items // NEW_ITEMS
    return FreshetConfig(
        stream=StreamConfig(
            bootstrap_servers=servers, history_length=8, seen_length=8, duplicate_window=1000
        ),
        model=ModelConfig(dim=8, heads=1, layers=1, history_length=8, augmented_dim=4, uniform_negatives=8),
        train=TrainConfig(
            workers=1,
            batch_events=EVENTS,
            stop_after_rows=rounds * EVENTS,
            publish_every_s=arguments.publish_every,
            checkpoint_every_s=arguments.checkpoint_every,
        ),
        table=TableConfig(
            admit_after=2, expire_after_s=EVENTS * 3, max_rows=10_000, max_waiting=10_000, sweep_every=1
        ),
        progressive=ProgressiveConfig(sample_fraction=0.01),
        device="cpu",
        storage_path=str(storage),
    )


def produce(config: FreshetConfig, items: int) -> None:
    """All events at once; what the worker does not read yet waits in the broker."""
    rng = np.random.default_rng(0)
    with EventProducer(config.stream) as producer:
        for n in range(items // NEW_ITEMS):
            at_N = np.arange(n * EVENTS, (n + 1) * EVENTS)
            fresh_N = n * NEW_ITEMS + rng.permutation(EVENTS) % NEW_ITEMS
            old_N = np.maximum(0, n * NEW_ITEMS - rng.integers(0, LIVING, EVENTS))
            columns = {
                "user_id": n * NEW_USERS + rng.integers(0, 1000, EVENTS),
                "item_id": np.where(rng.random(EVENTS) < 0.5, fresh_N, old_N),
                "timestamp_ms": 1_700_000_000_000 + at_N * 1000,
                "event_id": [f"e{number}" for number in at_N],
            }
            producer.send(pa.RecordBatch.from_pydict(columns))
            producer.flush()


def watch(trainer: Child, storage: Path) -> list[dict[str, float]]:
    """Of each look: items known so far, and MiB of USS, PSS and RSS; until the run has ended."""
    samples: list[dict[str, float]] = []
    while not trainer.check():
        said = read_progress(storage) or {}
        if said.get("state") == "training" and said.get("known_items"):
            memory = memory_of(int(said["pids"][0]))
            if memory:
                samples.append({"items": said["known_items"], **memory})
        time.sleep(0.5)
    return samples


def memory_of(pid: int) -> dict[str, float]:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    kib = {line.partition(":")[0]: int(line.split()[1]) for line in lines}
    own = sum(value for name, value in kib.items() if name in ("Private_Clean", "Private_Dirty"))
    return {"uss": own / 1024, "pss": kib["Pss"] / 1024, "rss": kib["Rss"] / 1024}


def report(samples: list[dict[str, float]], arguments: argparse.Namespace) -> dict[str, object]:
    """The peaks of each quarter of the items; the last may be above the second by what stays of an item."""
    quarter = arguments.items / 4
    peaks = []
    for number in range(4):
        found = [s for s in samples if number * quarter < s["items"] <= (number + 1) * quarter]
        peaks.append({name: round(max(s[name] for s in found), 1) for name in ("uss", "pss", "rss")})
    growth_mb = peaks[3]["uss"] - peaks[1]["uss"]
    allowed_mb = arguments.items / 2 * BYTES_PER_ITEM / 2**20
    return {
        "items": arguments.items,
        "looks": len(samples),
        "peak_mb_by_quarter": peaks,
        "growth_mb_in_second_half": round(growth_mb, 1),
        "allowed_mb": round(allowed_mb, 1),
        "passed": growth_mb <= allowed_mb,
        "samples": samples[:: max(1, len(samples) // 100)],
    }


if __name__ == "__main__":
    sys.exit(main())
