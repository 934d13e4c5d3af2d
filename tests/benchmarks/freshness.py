"""From the broker's append of a new item's first event to the moment a server can recommend it, under a full stream.

    python tests/benchmarks/freshness.py [--json FILE] [--items N] [--rate N] [--seconds N] [--publish-every S]
        [--checkpoint-every S]

A real broker, a trainer in a process of its own, and a server's model in this one, which follows versions and deltas
as `Recommender` does. Events of known items arrive at `--rate` a second; once a second comes an event of an item that
nothing knows yet. It is servable once the model in memory holds its vector. Appends are timed by the broker.
`freshness_s` has the percentiles; `lost_s` is how long items that were servable were not any more, after a change of
version. The clock starts with the first live version; checkpoints and full refreshes are inside. It measures wall time:
other work on the machine makes it worse.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import orjson
import pyarrow as pa
import torch
from kafka import KafkaProducer

from cluster.collectives import Collectives
from cluster.config import FreshetConfig, ProgressiveConfig, TrainConfig
from cluster.observability.progress_file import read_progress
from cluster.queries.served_model import ServedModel
from cluster.queries.version_store import version_store
from cluster.training.worker import Worker
from model.config import ModelConfig
from retrieval.config import IndexConfig
from retrieval.deltas.delta import Delta
from retrieval.versions.follower import VersionFollower
from retrieval.versions.store import Version
from streaming.config import StreamConfig, client_arguments
from streaming.events.partitioner import partition_of_users
from streaming.kafka.topics import create_topics
from streaming.local_broker.broker import LocalBroker
from streaming.producing.catalogue import publish_catalogue
from streaming.producing.producer import EventProducer
from tests.benchmarks.support.command import benchmark_parser, finish
from tests.benchmarks.support.synthetic import Population

REQUIRED_P50_S, REQUIRED_P99_S = 1.0, 2.0
_LOOK_EVERY_S = 0.1
_NOTE_EVERY_S = 0.005
_PROBE_EVERY_S = 1.0
_SEND_EVERY_S = 0.2
_FIRST_VERSION_S = 900.0
_LAST_PROBES_S = 30.0


@dataclass(frozen=True)
class Load:
    """What happens while it is measured."""

    items: int = 1_000_000
    users: int = 100_000
    rate: int = 500
    seconds: float = 600.0
    publish_every_s: float = 120.0
    checkpoint_every_s: float = 60.0
    dim: int = 64
    partitions: int = 2

    @property
    def at_once(self) -> int:
        """Events that are sent together."""
        return max(1, round(self.rate * _SEND_EVERY_S))


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--items", type=int, default=Load.items)
    parser.add_argument("--rate", type=int, default=Load.rate, help="events a second")
    parser.add_argument("--seconds", type=float, default=Load.seconds)
    parser.add_argument("--publish-every", type=float, default=Load.publish_every_s)
    parser.add_argument("--checkpoint-every", type=float, default=Load.checkpoint_every_s)
    arguments = parser.parse_args()
    load = Load(
        items=arguments.items,
        rate=arguments.rate,
        seconds=arguments.seconds,
        publish_every_s=arguments.publish_every,
        checkpoint_every_s=arguments.checkpoint_every,
    )
    with tempfile.TemporaryDirectory() as folder, LocalBroker(Path(folder) / "broker") as broker:
        stream = StreamConfig(bootstrap_servers=broker.bootstrap_servers)
        result = measure(stream, Path(folder) / "storage", load)
    result["settings"] = {k: v for k, v in vars(arguments).items() if k != "json"}
    return finish(result, arguments.json)


def measure(stream: StreamConfig, storage: Path, load: Load) -> dict[str, Any]:
    """Run it with topics of these settings, which do not exist yet."""
    config = _config(stream, storage, load)
    create_topics(stream, load.partitions)
    publish_catalogue(stream, _items(load.items), None)
    server = Server(config, load.items)
    events = Population(items=load.items, users=load.users).events(200 * load.at_once)
    with _trainer(config):
        with EventProducer(stream) as producer:
            producer.send(events.slice(0, load.at_once))  # a version needs a step
        server.wait_for_version()
        with _stream(stream, load, events), server.follows():
            probes = _probe(stream, load, server)
        progress = read_progress(storage) or {}
    server.close()
    return _result(probes, server, progress)


def _config(stream: StreamConfig, storage: Path, load: Load) -> FreshetConfig:
    return FreshetConfig(
        stream=stream,
        model=ModelConfig(dim=load.dim),
        train=TrainConfig(checkpoint_every_s=load.checkpoint_every_s, publish_every_s=load.publish_every_s),
        progressive=ProgressiveConfig(sample_fraction=0.0),
        index=IndexConfig(min_recall=0.0),  # nothing is trained for long
        device="cpu",
        storage_path=str(storage),
    )


def _items(count: int) -> pa.Table:
    ids = np.arange(1, count + 1)
    return pa.table(
        {
            "item_id": ids,
            "title": [f"item {i}" for i in ids.tolist()],
            "categories": [[f"c{i % 20}"] for i in ids.tolist()],
        }
    )


class Server:
    """A server's model, which follows versions and deltas, and the new items that it holds.

    Args:
        config: of the run.
        known: items of the catalogue; those with higher ids are new.
    """

    def __init__(self, config: FreshetConfig, known: int) -> None:
        self.versions: list[str] = []
        self.served_by: dict[int, str] = {}
        self.load_s: list[float] = []
        self.advance_s: list[float] = []
        self._config, self._known = config, known
        self._follower = VersionFollower(version_store(config), self._load, self._advance)
        self._served_at: dict[int, float] = {}
        self._lost: dict[int, float] = {}
        self.lost_s: list[float] = []

    def wait_for_version(self) -> None:
        """Until the first version is in memory."""
        deadline = time.monotonic() + _FIRST_VERSION_S
        while not self._follower.refresh():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no version within {_FIRST_VERSION_S:.0f} s")
            time.sleep(_LOOK_EVERY_S)
        self._note()

    @contextmanager
    def follows(self) -> Iterator[None]:
        """Follows as a server does, looking every 100 ms, while the block runs."""
        ended = threading.Event()

        def work() -> None:
            seen = self._follower.current
            while not ended.wait(_NOTE_EVERY_S):
                if self._follower.current is not seen:
                    seen = self._follower.current
                    self._note()

        thread = threading.Thread(target=work)
        with self._follower.following(_LOOK_EVERY_S):
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()

    def served_at(self, item: int) -> float | None:
        """When the item was first servable, seconds since 1970; None so far."""
        return self._served_at.get(item)

    def close(self) -> None:
        """Release the model."""
        self._follower.close()

    def _load(self, version: Version) -> Iterator[_Held]:
        started = time.monotonic()
        for model in ServedModel.load(version, self._config.stream):
            self.load_s.append(time.monotonic() - started)
            ids = model.items.item_ids
            yield _Held(version, model, frozenset(ids[ids > self._known].tolist()), self._known)

    def _advance(self, held: _Held, delta: Delta) -> _Held:
        started = time.monotonic()
        advanced = held.advance(delta)
        self.advance_s.append(time.monotonic() - started)
        return advanced

    def _note(self) -> None:
        current, now = self._follower.current, time.time()
        assert current is not None
        if current.version.name not in self.versions:
            self.versions.append(current.version.name)
        for item in current.new - self._served_at.keys():
            self._served_at[item] = now
            self.served_by[item] = f"{current.version.name} d{current.model.delta}"
        for item in self._served_at.keys() - current.new - self._lost.keys():
            self._lost[item] = now
        for item in [item for item in self._lost if item in current.new]:
            self.lost_s.append(now - self._lost.pop(item))


@dataclass(frozen=True)
class _Held:
    """A served model, and the new items that it holds."""

    version: Version
    model: ServedModel
    new: frozenset[int]
    known: int

    def advance(self, delta: Delta) -> _Held:
        ids, gone = delta.items()[0], delta.deleted()
        new = (self.new | set(ids[ids > self.known].tolist())) - set(gone.tolist())
        return _Held(self.version, self.model.advance(delta), frozenset(new), self.known)


@dataclass
class _Probes:
    """When the first event of each new item was appended, and what came of it."""

    appended_s: dict[int, float] = field(default_factory=dict)
    fresh_s: dict[int, float] = field(default_factory=dict)


def _probe(stream: StreamConfig, load: Load, server: Server) -> _Probes:
    probes = _Probes()
    ends = time.monotonic() + load.seconds
    rng = np.random.default_rng(5)
    with KafkaProducer(**client_arguments(stream)) as producer:
        item = load.items
        while time.monotonic() < ends:
            item, user = item + 1, int(rng.integers(1, load.users + 1))
            event = {"user_id": user, "item_id": item, "timestamp_ms": int(time.time() * 1000)}
            partition = int(partition_of_users(np.array([user]), load.partitions)[0])
            sent = producer.send(
                stream.interactions_topic,
                orjson.dumps(event),
                key=str(user).encode(),
                partition=partition,
            )
            probes.appended_s[item] = sent.get(timeout=30).timestamp / 1000
            time.sleep(_PROBE_EVERY_S)
    deadline = time.monotonic() + _LAST_PROBES_S
    while time.monotonic() < deadline and any(server.served_at(i) is None for i in probes.appended_s):
        time.sleep(_LOOK_EVERY_S)
    for item, appended in probes.appended_s.items():
        served = server.served_at(item)
        if served is not None:
            probes.fresh_s[item] = served - appended
    return probes


@contextmanager
def _stream(stream: StreamConfig, load: Load, events: pa.RecordBatch) -> Iterator[None]:
    """Events of known items at a steady rate while the block runs."""
    ended, at_once = threading.Event(), load.at_once

    def work() -> None:
        with EventProducer(stream) as producer:
            due, number = time.monotonic(), 0
            while not ended.is_set():
                producer.send(events.slice(number % 200 * at_once, at_once))
                producer.settle()
                number, due = number + 1, due + _SEND_EVERY_S
                ended.wait(max(0.0, due - time.monotonic()))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _trainer(config: FreshetConfig) -> Iterator[None]:
    """A trainer in a process of its own while the block runs."""
    process = multiprocessing.get_context("spawn").Process(target=_train, args=(config,))
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join(30)
        if process.is_alive():
            process.kill()


def _train(config: FreshetConfig) -> None:
    Worker(config, Collectives(), torch.device("cpu")).train()


def _result(probes: _Probes, server: Server, progress: dict[str, Any]) -> dict[str, Any]:
    fresh_s = np.array(list(probes.fresh_s.values()) or [np.inf])
    p50, p99 = (float(np.percentile(fresh_s, share)) for share in (50, 99))
    missing = len(probes.appended_s) - len(probes.fresh_s)
    first_s = min(probes.appended_s.values(), default=0.0)
    worst = sorted(probes.fresh_s, key=lambda item: -probes.fresh_s[item])[:8]
    return {
        "name": "freshness",
        "baseline": "none: a time",
        "new_items": len(probes.appended_s),
        "never_servable": missing,
        "freshness_s": {"min": float(fresh_s.min()), "p50": p50, "p99": p99, "max": float(fresh_s.max())},
        "worst": [
            {
                "appended_at_s": round(probes.appended_s[item] - first_s, 1),
                "fresh_s": round(probes.fresh_s[item], 2),
                "by": server.served_by[item],
            }
            for item in worst
        ],
        "lost_s": {"items": len(server.lost_s), "max": max(server.lost_s, default=0.0)},
        "required": {"p50_s": REQUIRED_P50_S, "p99_s": REQUIRED_P99_S},
        "passed": missing == 0 and p50 <= REQUIRED_P50_S and p99 <= REQUIRED_P99_S,
        "server": {
            "versions": len(server.versions),
            "deltas": len(server.advance_s),
            "load_s": [round(s, 2) for s in server.load_s],
            "advance_ms_p50": 1e3 * float(np.median(server.advance_s or [0.0])),
        },
        "trainer": {
            name: progress.get(name)
            for name in (
                "events_trained",
                "examples_per_s",
                "lag_events",
                "checkpoint",
                "deltas",
                "freshness",
            )
        },
    }


if __name__ == "__main__":
    sys.exit(main())
