"""Tombstones: a user's state and an item's rows are gone from the next checkpoint and version, on every rank."""

import numpy as np
import pyarrow as pa
import pytest
from kafka import KafkaProducer

from cluster.checkpoints.state import read_state
from cluster.publishing.serving import Recommender, UnknownUser
from cluster.training.accounting import verify_exactly_once
from model.features import ITEM, SOURCE, USER
from streaming.config import StreamConfig
from streaming.producer import publish_catalogue
from tests.ranks import run_on_ranks
from tests.worker_runs import START_MS, config_of, events, newest, produce, train

GONE_USER, GONE_ITEM = 5, 9


def _tombstones(stream: StreamConfig) -> None:
    with KafkaProducer(bootstrap_servers=stream.bootstrap_servers) as producer:
        producer.send(stream.users_topic, key=str(GONE_USER).encode(), value=None)
        producer.send(stream.items_topic, key=str(GONE_ITEM).encode(), value=None)
        producer.flush()


def _with_item(first: int, count: int, users: list[int]) -> pa.RecordBatch:
    at = np.arange(first, first + count)
    columns = {
        "user_id": np.resize(users, count),
        "item_id": np.full(count, GONE_ITEM),
        "timestamp_ms": START_MS + at * 1000,
        "action": np.resize(["look", "skip"], count).tolist(),
    }
    return pa.RecordBatch.from_pydict(columns)


def _keys(state) -> set[tuple[int, int]]:
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
