"""Text ids through a real broker: trained on two ranks, given back everywhere, told apart, and forgotten."""

import json

import orjson
import pyarrow as pa
import pytest
from kafka import KafkaProducer
from typer.testing import CliRunner

from cluster.audit.exactly_once import used_per_user
from cluster.serving.recommender import Recommender, UnknownUser
from deploy.cli import app
from streaming.events.ids import id_of_text
from streaming.events.partitioner import partition_of_texts
from streaming.producing.catalogue import publish_catalogue
from tests.support.hash_clash import two_texts_with_one_hash
from tests.support.ranks import run_on_ranks
from tests.support.worker_runs import START_MS, config_of, newest, produce, reasons_of, send_raw, train

USERS = [f"user-{n}" for n in range(12)]
ITEMS = [f"sku-{n}" for n in range(30)]
GONE_USER, GONE_ITEM = "user-5", "sku-9"


def _events(count):
    return pa.RecordBatch.from_pydict(
        {
            "user_id": [USERS[n % 12] for n in range(count)],
            "item_id": [ITEMS[n * 7 % 30] for n in range(count)],
            "timestamp_ms": [START_MS + n * 1000 for n in range(count)],
        }
    )


def _texts_in(checkpoint):
    return b"".join(file.read().to_pybytes() for file in checkpoint.files("id-texts-"))


def test_text_ids_come_back_from_recommend_the_audit_and_the_files_and_are_forgotten(
    stream_factory, tmp_path
):
    stream = stream_factory(2)
    publish_catalogue(stream, pa.table({"item_id": ["sku-3"], "title": ["Boots"]}), None)
    produce(stream, _events(480))
    first, second = two_texts_with_one_hash("item")
    for item in (first, second):
        send_raw(stream, [_message("user-1", item)])
    config = config_of(stream, tmp_path)
    run_on_ranks(train, 2, config)
    assert [reason for reason in reasons_of(stream) if "has the same 64-bit hash as" in reason]

    report = tmp_path / "answers.json"
    names = ("bootstrap_servers", "interactions_topic", "items_topic", "users_topic")
    overrides = [f"storage_path={tmp_path}", *(f"stream.{name}={getattr(stream, name)}" for name in names)]
    asked = ["recommend", "--user", "user-3", "--history", "sku-1,sku-2", "-k", "5", "--json", str(report)]
    done = CliRunner().invoke(app, [*asked, *overrides])
    assert done.exit_code == 0, done.output
    by_user, by_history = json.loads(report.read_text())
    assert by_user["user_id"] == "user-3"
    for entry in (by_user, by_history):
        assert len(entry["items"]) == 5
        assert {item["item_id"] for item in entry["items"]} <= {*ITEMS, first}
    unknown = CliRunner().invoke(app, ["recommend", "--history", "1,2,3", *overrides])
    assert unknown.exit_code != 0
    assert "none of the items 1, 2, 3 is known" in str(unknown.exception) + unknown.output

    assert sorted(used_per_user(config)["user_id"].to_pylist()) == sorted(USERS)
    with Recommender(config) as recommender:
        assert sorted(recommender.user_ids()) == sorted(USERS)
    before = _texts_in(newest(config))
    assert GONE_USER.encode() in before

    with KafkaProducer(bootstrap_servers=stream.bootstrap_servers) as producer:
        producer.send(stream.users_topic, key=GONE_USER.encode(), value=None)
        producer.send(stream.items_topic, key=GONE_ITEM.encode(), value=None)
    send_raw(stream, [_message("user-3", "sku-1")])
    config.train.checkpoint_full_every = 0  # deltas keep what was removed until the next full checkpoint
    train(0, config)
    after = newest(config)
    assert after.manifest["kind"] == "full"
    kept = _texts_in(after)
    assert GONE_USER.encode() not in kept
    assert GONE_ITEM.encode() not in kept
    assert b"user-3" in kept
    with Recommender(config) as recommender:
        assert GONE_USER not in recommender.user_ids()
        assert id_of_text(GONE_USER) not in recommender.user_ids()
        found = {one.item_id for one in recommender.recommend(user_id="user-3", k=40)}
        assert found <= {*ITEMS, first} - {GONE_ITEM}
        assert any(one.title == "Boots" for one in recommender.recommend(history=["sku-1"], k=40))
        with pytest.raises(UnknownUser):
            recommender.recommend(user_id=GONE_USER)


def _message(user, item):
    event = {"user_id": user, "item_id": item, "timestamp_ms": START_MS + 500_000}
    return {"value": orjson.dumps(event), "key": user.encode()}


def test_two_texts_of_one_hash_on_two_ranks_are_not_mixed_and_one_is_a_dead_letter_after_a_restart(
    stream_factory, tmp_path
):
    stream = stream_factory(2)
    first, second = two_texts_with_one_hash("item")
    home = partition_of_texts(pa.array(USERS), 2).tolist()
    readers = [USERS[home.index(rank)] for rank in (0, 1)]
    produce(stream, _events(120))
    for user, item in zip(readers, (first, second), strict=True):
        send_raw(stream, [_message(user, item)])
    config = config_of(stream, tmp_path)
    with pytest.raises(Exception, match="have the same 64-bit hash: the run restarts"):
        run_on_ranks(train, 2, config)
    assert reasons_of(stream) == []
    run_on_ranks(train, 2, config)  # as Ray restarts it
    (reason,) = reasons_of(stream)
    chosen, refused = sorted((first, second))
    assert reason.startswith(f"item_id {refused!r} has the same 64-bit hash as {chosen!r}")
    used = used_per_user(config)
    assert sum(used["events"].to_pylist()) == 121
