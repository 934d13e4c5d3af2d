"""A worker continues with other user attributes and another number of ranks without losing learned state."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
from kafka import KafkaProducer

from cluster.audit.exactly_once import verify_exactly_once
from cluster.audit.state import read_state
from cluster.serving.recommender import Recommender
from model.features import attribute_table
from streaming.producing.catalogue import publish_catalogue
from tests.support.feature_ids import attribute_id
from tests.support.ranks import run_on_ranks
from tests.support.worker_runs import config_of, events, newest, produce, train

GONE, BACK = 5, 6


def _rows(state, place):
    rows = state.rows.filter(pc.equal(state.rows["table"], attribute_table(place)))
    return dict(zip(rows["id"].to_pylist(), rows["value"].to_pylist(), strict=True))


def _ids(state):
    return set(state.rows["id"].to_pylist())


def test_two_ranks_go_on_from_ones_checkpoint_with_a_new_attribute_whose_values_lie_in_the_topic(
    stream_factory, tmp_path
):
    stream = stream_factory(2, user_attributes=["age", "gender"])
    people = {
        "user_id": [1, 2, GONE, BACK],
        "gender": ["F", "M", "F", "M"],
        "age": [20] * 4,
        "country": ["DE"] * 4,
    }
    publish_catalogue(stream, None, pa.table(people))
    with KafkaProducer(bootstrap_servers=stream.bootstrap_servers) as producer:
        for user in (GONE, BACK):
            producer.send(stream.users_topic, key=str(user).encode(), value=None)
        producer.flush()
    publish_catalogue(stream, None, pa.table({"user_id": [BACK], "gender": ["M"], "country": ["FR"]}))
    produce(stream, events(200))
    config = config_of(stream, tmp_path)
    train(0, config)
    before = read_state(newest(config))

    changed = replace(config, stream=replace(stream, user_attributes=["country", "gender"]))
    assert len(Recommender(changed).recommend(user_id=1, k=3)) == 3  # the version keeps its own attributes
    # Nothing is trained: what is in the checkpoint was carried over.
    progress = run_on_ranks(train, 2, changed)[0][0]
    assert progress["notice"] == "user attributes: country new, so it starts fresh; age dropped"
    state = read_state(newest(changed))
    assert newest(changed).manifest["kind"] == "full"
    assert len(_rows(before, 1)) == 2
    assert _rows(state, 1) == _rows(before, 1)
    assert _rows(state, 0) == {}
    assert _ids(before) - _ids(state) == {attribute_id("age", "20")}
    known = state.tables["catalogue-users.arrow"].to_pylist()
    assert {user["user_id"]: user["attributes"] for user in known} == {
        1: [attribute_id("country", "DE"), attribute_id("gender", "F")],
        2: [attribute_id("country", "DE"), attribute_id("gender", "M")],
        BACK: [attribute_id("country", "FR"), attribute_id("gender", "M")],
    }
    # A tombstone that is read again forgets nobody again.
    users = pa.concat_tables(state.users.values())["user_id"].to_pylist()
    assert {GONE, BACK} <= set(users)

    produce(stream, events(100, first=200))
    run_on_ranks(train, 2, changed)
    assert verify_exactly_once(changed).exactly_once
    assert attribute_id("country", "DE") in _rows(read_state(newest(changed)), 0)
