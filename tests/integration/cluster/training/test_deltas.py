"""Deltas in the worker loop on one and two ranks, without a broker: a reader that follows them has the run's state."""

from concurrent.futures import wait

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cluster.audit.state import read_state
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.publishing.item_encoding import encode_items
from cluster.queries.changes import read_changes
from cluster.queries.query_side import QuerySide
from cluster.queries.version_store import version_store
from cluster.training.intake import catalogue_feed
from cluster.training.worker import Worker
from retrieval.deltas.chain import DeltaChain
from retrieval.versions.item_vectors import read_item_vectors
from streaming.catalogue.records import CatalogueUpdate
from streaming.config import StreamConfig
from streaming.events.schema import CATEGORIES, DELETED, ITEM_ID, ITEM_SCHEMA, TITLE, USER_SCHEMA
from streaming.sources.parquet_source import EVENTS_FILE
from tests.support.ranks import run_on_ranks
from tests.support.state_digests import digests
from tests.support.worker_runs import config_of, events, newest

EVENTS, GONE_ITEM, NEW_ITEM = 2000, 7, 5000
REASON = "the test wants a version"


class Patient(Worker):
    """Has a version made early, deletes an item later, and waits for threads, so that there are always deltas."""

    def _step(self, *, ahead: bool) -> None:
        if self.run.step == 4:
            self._publishing.ask(REASON)
        if self.run.step == 20 and self.comm.rank == 0:
            self._intake._feed._pending = deletion()
        self._wait_for_threads()
        super()._step(ahead=ahead)

    def _wait_for_threads(self) -> None:
        writing = self._saving._checkpointer
        if writing._slices is None and writing._now is not None:
            wait([writing._now.job])
        self.publisher.wait()
        self.deltas.wait()

    def _finish(self, decision):
        for _ in range(2 if self.deltas.on else 0):
            self.deltas.wait()
            self.deltas.start(self.run.step, self.run.events_trained)
        self.deltas.wait()
        table = self.run.table
        keys = table.keys_of(table.rows())
        self.rows = *keys, table.values_CD[torch.from_numpy(table.rows())].numpy().copy()
        with torch.random.fork_rng():  # reading a whole version draws numbers
            self.followed = follow(self.config) if self.deltas.on and self.comm.rank == 0 else None
        self.known = self.run.catalogue.item_ids
        return super()._finish(decision)


def deletion() -> CatalogueUpdate:
    record = {ITEM_ID: [GONE_ITEM], TITLE: [None], CATEGORIES: [[]], DELETED: [True]}
    return CatalogueUpdate(pa.table(record, schema=ITEM_SCHEMA), USER_SCHEMA.empty_table())


def follow(config: FreshetConfig) -> tuple:
    """What a reader of the live version and all its deltas has: query side, vectors by item, number of deltas."""
    store = version_store(config)
    version = store.current()
    side = QuerySide.load(version, config.stream)
    table = read_item_vectors(config.index_location)
    vectors = dict(zip(table["item_id"].to_pylist(), table["vector"].to_numpy(), strict=True))
    number = 0
    for delta in DeltaChain(store, version).after(0):
        side = side.advance(read_changes(delta))
        ids, vectors_ND = delta.items()
        vectors |= dict(zip(ids.tolist(), vectors_ND, strict=True))
        number = delta.number
        for item in delta.deleted().tolist():
            del vectors[item]
    return side, vectors, number


def train_and_follow(rank: int, config: FreshetConfig) -> dict:
    catalogue_feed._POLL_EVERY_S = 3600
    worker = Patient(config, Collectives(), torch.device("cpu"))
    report = worker.train()
    gathered = worker.comm.gather_objects(worker.rows)
    if worker.followed is None:
        return {"report": report}
    side, vectors, number = worker.followed
    tables, ids, values = (np.concatenate(column) for column in zip(*gathered, strict=True))
    items = np.array(sorted(vectors))
    [(_, wanted)] = encode_items(side.model, side.rows, [(items, side.catalogue.categories(items))])
    return {
        "report": report,
        "number": number,
        "rows_equal": np.array_equal(side.rows.rows_of(tables, ids)[1:].numpy(), values),
        "rows": ids.shape[0],
        "items_equal": set(vectors) == set(worker.known.tolist()),
        "apart": float(np.abs(np.stack([vectors[item] for item in items.tolist()]) - wanted).max()),
        "knows": side.catalogue.knows(np.array([GONE_ITEM, NEW_ITEM])).tolist(),
        "vectors": [GONE_ITEM in vectors, NEW_ITEM in vectors],
    }


@pytest.fixture
def stream(tmp_path) -> StreamConfig:
    folder = tmp_path / "files"
    folder.mkdir()
    late = events(100, first=EVENTS).set_column(1, "item_id", pa.array(np.full(100, NEW_ITEM)))
    pq.write_table(pa.Table.from_batches([events(EVENTS), late]), folder / EVENTS_FILE)
    return StreamConfig(parquet=str(folder), parquet_partitions=2)


def settings(stream: StreamConfig, storage, every_s: float) -> FreshetConfig:
    config = config_of(stream, storage, publish_every_s=3600)
    config.index.delta_every_s, config.index.delta_max_items = every_s, 1000
    return config


@pytest.mark.parametrize("world", [1, 2])
def test_a_reader_of_all_deltas_has_the_rows_vectors_and_records_of_the_run(stream, tmp_path, world):
    config = settings(stream, tmp_path / "run", 0.001)
    found = train_and_follow(0, config) if world == 1 else run_on_ranks(train_and_follow, world, config)[0]
    assert found["number"] >= 2
    assert found["rows_equal"]
    assert found["rows"] > 100
    assert found["items_equal"]
    assert found["apart"] < 1e-5
    assert (found["knows"], found["vectors"]) == ([False, True], [False, True])
    assert found["report"]["deltas"]["published"] >= found["number"]
    if world == 1:
        without = settings(stream, tmp_path / "without", 0.0)
        train_and_follow(0, without)
        assert digests(read_state(newest(config))) == digests(read_state(newest(without)))
