"""Tombstones: a user's state and an item's rows are gone from the next checkpoint and version, on every rank."""

import copy
import struct
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from kafka import KafkaProducer

from cluster.audit.exactly_once import verify_exactly_once
from cluster.audit.state import State, read_state
from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.serving.recommender import Recommender, UnknownUser
from model.features import ITEM, SOURCE, USER
from retrieval.versions.item_vectors import read_item_vectors
from retrieval.versions.store import VersionStore
from streaming.config import StreamConfig
from streaming.producing.catalogue import publish_catalogue
from streaming.sources.kafka_source import end_offsets
from tests.support.ranks import run_on_ranks
from tests.support.worker_runs import START_MS, config_of, events, newest, produce, train

GONE_USER, GONE_ITEM = 5, 9
RARE_USER, RARE_ITEM = 0x6B1D3C5A79, 0x5A4E2F8C1B
"""Numbers that no file holds by chance."""


def _tombstones(stream: StreamConfig, user: int = GONE_USER, item: int = GONE_ITEM) -> None:
    with KafkaProducer(bootstrap_servers=stream.bootstrap_servers) as producer:
        producer.send(stream.users_topic, key=str(user).encode(), value=None)
        producer.send(stream.items_topic, key=str(item).encode(), value=None)
        producer.flush()


def _with_item(first: int, count: int, users: list[int], item: int = GONE_ITEM) -> pa.RecordBatch:
    at = np.arange(first, first + count)
    columns = {
        "user_id": np.resize(users, count),
        "item_id": np.full(count, item),
        "timestamp_ms": START_MS + at * 1000,
        "action": np.resize(["look", "skip"], count).tolist(),
    }
    return pa.RecordBatch.from_pydict(columns)


def _keys(state: State) -> set[tuple[int, int]]:
    return set(zip(state.rows["table"].to_pylist(), state.rows["id"].to_pylist(), strict=True))


def test_a_tombstone_removes_a_users_state_and_an_items_rows_from_the_next_checkpoint_and_version(
    stream_factory, tmp_path
):
    stream = stream_factory(2, user_attributes=["gender"], negative_actions=["skip"])
    items = pa.table({"item_id": list(range(1, 61)), "title": [f"title {n}" for n in range(1, 61)]})
    publish_catalogue(stream, items, pa.table({"user_id": [GONE_USER, 6], "gender": ["F", "M"]}))
    produce(stream, events(400))
    produce(stream, _with_item(400, 40, [GONE_USER, 6, 7]))
    config = config_of(stream, tmp_path)
    config.model.user_id_embedding, config.model.source_items = True, 3
    run_on_ranks(train, 2, config)
    before = read_state(newest(config))
    assert {(ITEM, GONE_ITEM), (SOURCE, GONE_ITEM), (USER, GONE_USER)} <= _keys(before)
    Recommender(config).recommend(user_id=GONE_USER, k=3)

    _tombstones(stream)
    produce(stream, events(60, first=440, users=4))
    produce(stream, _with_item(500, 10, [1, 2]))
    run_on_ranks(train, 2, config)
    state = read_state(newest(config))
    assert not {(ITEM, GONE_ITEM), (SOURCE, GONE_ITEM), (USER, GONE_USER)} & _keys(state)
    users = pa.concat_tables(state.users.values())
    assert GONE_USER not in users["user_id"].to_pylist()
    assert {6, 7} <= set(users["user_id"].to_pylist())
    for name in ("items", "negatives"):
        assert GONE_ITEM not in users[name].combine_chunks().flatten().to_pylist()
    assert GONE_USER not in state.tables["catalogue-users.arrow"]["user_id"].to_pylist()
    (gone,) = (r for r in state.tables["catalogue-items.arrow"].to_pylist() if r["item_id"] == GONE_ITEM)
    assert (gone["title"], gone["deleted"]) == (None, True)

    # The version cannot recommend the item, nor be asked for the user; what came of the item later is accounted for.
    recommender = Recommender(config)
    with pytest.raises(UnknownUser):
        recommender.recommend(user_id=GONE_USER)
    found = recommender.recommend(history=[1, 2], k=60)
    assert len(found) > 40
    assert GONE_ITEM not in {one.item_id for one in found}
    accounting = verify_exactly_once(config)
    assert accounting.exactly_once, accounting
    late = sum(event["item_id"] == GONE_ITEM for event in events(60, first=440, users=4).to_pylist())
    assert accounting.events_ignored == 10 + late

    # Who comes back starts anew; so does the item with its next record.
    publish_catalogue(stream, pa.table({"item_id": [GONE_ITEM], "title": ["again"]}), None)
    again = _with_item(600, 3, [GONE_USER])
    produce(stream, again.set_column(3, "action", pa.array(["look"] * 3)))
    train(0, config)
    state = read_state(newest(config))
    users = pa.concat_tables(state.users.values()).to_pylist()
    assert [u["items"] for u in users if u["user_id"] == GONE_USER] == [[GONE_ITEM] * 3]
    assert (ITEM, GONE_ITEM) in _keys(state)


def _wait(run: Future[object], look: Callable[[], object], wanted: object, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while (found := look()) != wanted:
        assert not run.done(), f"the run is over: {run.result()}"
        assert time.monotonic() < deadline, f"timed out at {found}"
        time.sleep(0.5)


def _user_and_item_in(state: State) -> tuple[bool, bool]:
    """Whether anything of the rare ids is left: rows, histories, negatives, attributes, title."""
    users, keys = pa.concat_tables(state.users.values()), _keys(state)
    attributes = state.tables["catalogue-users.arrow"]["user_id"].to_pylist()
    titles = state.tables["catalogue-items.arrow"]["title"].to_pylist()
    had = [
        item for name in ("items", "negatives") for item in users[name].combine_chunks().flatten().to_pylist()
    ]
    return (
        (USER, RARE_USER) in keys or RARE_USER in users["user_id"].to_pylist() or RARE_USER in attributes,
        bool({(ITEM, RARE_ITEM), (SOURCE, RARE_ITEM)} & keys) or RARE_ITEM in had or "rare" in titles,
    )


def _files_with(folder: Path, number: int) -> set[str]:
    """Names of the files below a folder that hold a number, as eight bytes or as text."""
    forms = (struct.pack("<q", number), str(number).encode())
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.name for path in files if any(form in path.read_bytes() for form in forms)}


def test_tombstones_reach_a_live_run_and_what_retention_leaves_of_it_holds_the_ids_nowhere(
    stream_factory, tmp_path
):
    stream = stream_factory(2, user_attributes=["gender"], negative_actions=["skip"])
    items = pa.table({"item_id": [*range(1, 61), RARE_ITEM], "title": ["title"] * 60 + ["rare"]})
    publish_catalogue(stream, items, pa.table({"user_id": [RARE_USER, 6], "gender": ["F", "M"]}))
    produce(stream, events(300))
    produce(stream, _with_item(300, 40, [RARE_USER, 6, 7], RARE_ITEM))
    live = {"bounded": False, "stop_after_rows": 400, "checkpoint_every_s": 1.0, "publish_every_s": 1.0}
    config = config_of(stream, tmp_path, checkpoints_to_keep=1000, **live)
    config.index.versions_to_keep, config.progressive.sample_fraction = 1000, 0.2
    config.progressive.served_cpu_share = 0.0
    config.model.user_id_embedding, config.model.source_items = True, 3
    versions = VersionStore(tmp_path / "index")

    def held() -> tuple[int, bool, bool, bool]:
        """Rows that the newest checkpoint has read, what it has of user and item, and the live version of the item."""
        checkpoint, version = newest(config), versions.current()
        if checkpoint is None or version is None:
            return 0, False, False, False
        served = read_item_vectors(version.storage.where, version.name)["item_id"].to_pylist()
        return (
            checkpoint.manifest["rows_read"],
            *_user_and_item_in(read_state(checkpoint)),
            RARE_ITEM in served,
        )

    # While the run is live and nothing else comes, the tombstones alone make its next checkpoint and version.
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(run_on_ranks, train, 2, config, timeout_s=280.0)
        _wait(run, held, (340, True, True, True))
        assert {(ITEM, RARE_ITEM), (SOURCE, RARE_ITEM), (USER, RARE_USER)} <= _keys(
            read_state(newest(config))
        )
        assert RARE_ITEM in {one.item_id for one in Recommender(config).recommend(history=[1], k=61)}
        _tombstones(stream, RARE_USER, RARE_ITEM)
        _wait(run, held, (340, False, False, False))
        recommender = Recommender(config)
        assert RARE_ITEM not in {one.item_id for one in recommender.recommend(history=[1], k=61)}
        with pytest.raises(UnknownUser):
            recommender.recommend(user_id=RARE_USER)
        produce(stream, events(50, first=340, users=4))
        produce(stream, _with_item(390, 10, [1, 2], RARE_ITEM))
        run.result()
    accounting = verify_exactly_once(config)
    assert accounting.exactly_once, accounting
    assert accounting.events_ignored == 10

    # Not one checkpoint was behind: whichever had read the tombstones had forgotten.
    ends = {topic: end_offsets(stream, topic) for topic in (stream.users_topic, stream.items_topic)}
    store = CheckpointStore(tmp_path / "checkpoints")
    seen = []
    for checkpoint in map(store.open, store.names()):
        at = checkpoint.manifest["catalogue_positions"]
        read = tuple(
            all(at[topic][str(p)][0] >= end for p, end in ends[topic].items())
            for topic in (stream.users_topic, stream.items_topic)
        )
        seen.append((read, _user_and_item_in(read_state(checkpoint))))
    assert all(not (has and done) for read, has in seen for has, done in zip(has, read, strict=True)), seen
    assert ((False, False), (True, True)) in seen
    assert seen[-1] == ((True, True), (False, False))

    # Older checkpoints and versions hold them until retention drops those: a full one and the newest version stay.
    held_in = _files_with(tmp_path, RARE_USER) | _files_with(tmp_path, RARE_ITEM)
    assert "catalogue-users.arrow" in held_in
    assert held_in & {"items-0000.arrow", "items-0001.arrow"}
    produce(stream, events(40, first=400))
    last = copy.deepcopy(config)
    last.train.bounded, last.train.stop_after_rows, last.train.publish_every_s = True, 0, 0
    last.train.checkpoints_to_keep, last.train.checkpoint_full_every = 1, 0
    last.index.versions_to_keep = 1
    train(0, last)
    assert len(store.names()) == len(versions.names()) == 1
    # The ledger has to know whose events were used, the catalogue which item is not to come back; the validation's
    # baselines have a column of counts for every item that there was.
    user_in, item_in = _files_with(tmp_path, RARE_USER), _files_with(tmp_path, RARE_ITEM)
    assert {name.partition("-p")[0] for name in user_in} == {"ledger"}
    assert item_in == {"catalogue-items.arrow", "baselines.safetensors"}
    title = [path for path in tmp_path.rglob("*") if path.is_file() and b"rare" in path.read_bytes()]
    assert not title
