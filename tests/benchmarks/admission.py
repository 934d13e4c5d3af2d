"""How the own row of an admitted id should start: as a copy of the row that it shared, or as any new row.

    python tests/benchmarks/admission.py [--json FILE] [--data DIR] [--admit-after N] [--shared N,N] [--events N]
        [KEY=VALUE]

All events of a data set in time order, trained once by one rank in this process, with `table.admitted_start=shared`
and again with `fresh`; and, for orientation, with a row for every id at once. Every event is scored before it is
trained on, among all items, the user's seen ones removed: HR@10 over all of them, and over those of the second half. A
small data set has hardly two waiting ids to a bucket, a large table has hundreds: `--shared` says how many rows the ids
of a table share (4096 is one per bucket, as the product has it; fewer is what more ids would make of it). The interval
is a bootstrap over blocks of 500 trained events, paired by block.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from streaming.arrays import Int16Array, Int64Array

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pyarrow as pa
import torch

from cluster.collectives import Collectives
from cluster.config import ProgressiveConfig
from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.measuring.significance import PerQuery, compare
from cluster.evaluation.protocol.data import EvaluationData, Tables, prepare
from cluster.tables.buckets import BUCKETS, shared_keys
from cluster.training.state.run import TrainingRun
from deploy.command.config_loading import load_offline_config
from deploy.datasets.datasets import fetch, load
from streaming.batches.batcher import Batcher
from streaming.events.schema import EVENT_SCHEMA
from tests.benchmarks.support.command import benchmark_parser, finish
from tests.benchmarks.support.stream_passes import log_of
from tests.support.memory_source import MemorySource, NoDeadLetters, partitioned_log

PARTITIONS, BLOCK_EVENTS = 4, 500
DEFAULTS = ["protocol.shuffle_ties=true", "device=cpu"]
STARTS = ("shared", "fresh")


def main() -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--data", type=Path, help="folder of a data set; default: ml-100k, downloaded")
    parser.add_argument("--admit-after", type=float, default=5.0)
    parser.add_argument("--shared", default="4096,16", help="rows that the waiting ids of a table share")
    parser.add_argument("--events", type=int, default=0, help="how many, from the beginning (0 = all)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of all runs")
    arguments = parser.parse_args()
    config = load_offline_config(None, [*DEFAULTS, *arguments.overrides])
    torch.set_num_threads(config.train.threads_per_worker)
    counts = [int(count) for count in arguments.shared.split(",")]
    result = measure(arguments.data, config, arguments.admit_after, counts, arguments.events)
    result["settings"] |= {"overrides": arguments.overrides}
    return finish(result, arguments.json)


def measure(
    folder: Path | None, config: OfflineConfig, admit_after: float, shared: list[int], events: int
) -> dict[str, Any]:
    """Every start with every number of shared rows, and rows at once."""
    started = time.process_time()
    found = load(folder or fetch("ml-100k"))
    tables = Tables(found.name, found.interactions, found.items, found.users)
    data = prepare(tables, config)
    stream = log_of(data.interactions)
    stream = stream.slice(0, events or stream.num_rows)
    at_once = trained(_with_table(config, admit_after=1.0), data, stream)
    _say(f"rows at once: {_told(at_once)}")
    by_count = {}
    for count in shared:
        runs = {}
        for start in STARTS:
            with _sharing(count):
                runs[start] = trained(
                    _with_table(config, admit_after=admit_after, admitted_start=start), data, stream
                )
            _say(f"{count} shared rows, {start}: {_told(runs[start])}")
        by_count[str(count)] = {
            **{start: _told(run) for start, run in runs.items()},
            **verdict(runs["shared"], runs["fresh"]),
        }
    return {
        "name": "admission",
        "baseline": "an admitted id's row starts fresh",
        "at_once": _told(at_once),
        "by_shared_rows": by_count,
        "cpu_s": time.process_time() - started,
        "settings": {"data": found.name, "events": stream.num_rows, "admit_after": admit_after},
    }


def _with_table(config: OfflineConfig, **settings: Any) -> OfflineConfig:
    validation = ProgressiveConfig(sample_fraction=1.0, baselines=False, bin_events=BLOCK_EVENTS)
    return replace(config, table=replace(config.table, **settings), progressive=validation)


@contextmanager
def _sharing(rows: int) -> Iterator[None]:
    """Ids share so many rows of a table: one of several buckets stands for all of them."""
    width = BUCKETS // rows

    def keys(tables: Int16Array, ids: Int64Array) -> tuple[Int16Array, Int64Array]:
        shared, bucket = shared_keys(tables, ids)
        return shared, bucket // width * width

    with patch("cluster.tables.sharded_embedding.shared_keys", keys):
        yield


def trained(config: OfflineConfig, data: EvaluationData, stream: pa.RecordBatch) -> dict[str, np.ndarray]:
    """One pass: sample and hits of each block."""
    run = TrainingRun.create(config, list(range(PARTITIONS)), Collectives(), torch.device("cpu"))
    run.catalogue.apply(data.catalogue.snapshot())
    source = MemorySource(partitioned_log(_as_events(stream), PARTITIONS), run.partitions)
    batcher = Batcher(config.stream, source, run.users, run.catalogue, NoDeadLetters())
    while not source.finished:
        batch = batcher.next_batch(config.train.batch_events // PARTITIONS)
        prepared = run.train_step.prepare(batch, run.step)
        run.curve.add(run.events_trained, run.progressive.score(batch, prepared))
        run.train_step.train(prepared, run.step)
        run.events_trained += prepared.global_targets.events
        run.step += 1
    return {name: np.asarray(run.curve.bins[name]) for name in ("sample", "hits")}


def _as_events(stream: pa.RecordBatch) -> pa.RecordBatch:
    """EVENT_SCHEMA, without what these events do not say."""
    known = set(stream.schema.names)
    columns = [
        stream[field.name].cast(field.type) if field.name in known else pa.nulls(stream.num_rows, field.type)
        for field in EVENT_SCHEMA
    ]
    return pa.RecordBatch.from_arrays(columns, schema=EVENT_SCHEMA)


def verdict(shared: dict[str, np.ndarray], fresh: dict[str, np.ndarray]) -> dict[str, float]:
    """HR@10 of `shared` over that of `fresh`, on all events, with its interval."""
    assert np.array_equal(shared["sample"], fresh["sample"]), "the two sides scored different events"
    hits = np.stack([shared["hits"], fresh["hits"]], axis=1)
    found = compare({"hr10": PerQuery(hits, shared["sample"].astype(np.float64))})["hr10"][0]
    return {"ratio": 1 + found.gain, "ratio_low": 1 + found.gain_low, "ratio_high": 1 + found.gain_high}


def _told(run: dict[str, np.ndarray]) -> dict[str, float]:
    later = slice(run["sample"].shape[0] // 2, None)
    return {
        "hr10": float(run["hits"].sum() / run["sample"].sum()),
        "hr10_second_half": float(run["hits"][later].sum() / run["sample"][later].sum()),
        "scored_events": int(run["sample"].sum()),
    }


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
