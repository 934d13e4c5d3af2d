"""`freshet check` on a real broker: exits 0 only if training would work, and names what to change."""

import json

import orjson
import pyarrow as pa
from kafka import KafkaProducer
from typer.testing import CliRunner

from deploy.cli import app
from streaming.config import client_arguments
from streaming.producing.catalogue import publish_catalogue
from tests.support.worker_runs import START_MS, events, produce

NAMES = ("bootstrap_servers", "interactions_topic", "items_topic", "users_topic")


def _check(stream, tmp_path, *more):
    file = tmp_path / "check.json"
    overrides = [f"stream.{name}={getattr(stream, name)}" for name in NAMES]
    done = CliRunner().invoke(app, ["check", "--json", str(file), *overrides, *more])
    return done, json.loads(file.read_text())


def test_a_stream_of_ours_would_train_and_anothers_does_with_the_settings_that_the_check_names(
    stream_factory, tmp_path
):
    stream = stream_factory(2)
    produce(stream, events(200))
    publish_catalogue(stream, pa.table({"item_id": [1, 2], "title": ["one", "two"]}), None)
    done, found = _check(stream, tmp_path)
    assert done.exit_code == 0, done.output
    assert found["trains"]
    assert found["topics"][0]["usable"] == 200
    assert "training would work" in done.output

    theirs = stream_factory(2)
    with KafkaProducer(**client_arguments(theirs), compression_type="lz4", linger_ms=100) as producer:
        for n in range(100):
            event = {"visitor": {"id": n % 5}, "item_id": n % 7, "occurred_at": START_MS // 1000 + n}
            producer.send(theirs.interactions_topic, orjson.dumps(event), key=str(n % 5).encode())
    done, found = _check(theirs, tmp_path)
    assert done.exit_code == 1
    assert list(found["topics"][0]["codecs"]) == ["lz4"]
    assert "codecs" in done.output
    assert "training would not work" in done.output
    changes = [problem["change"] for problem in found["problems"] if problem["stops"]]
    assert "stream.fields=[timestamp_ms=occurred_at]" in changes
    assert "stream.fields=[user_id=visitor.id]" in changes
    mapped = "stream.fields=[user_id=visitor.id,timestamp_ms=occurred_at]"
    done, found = _check(theirs, tmp_path, mapped)
    assert "stream.timestamp_unit=s" in [problem["change"] for problem in found["problems"]]
    done, found = _check(theirs, tmp_path, mapped, "stream.timestamp_unit=s")
    assert done.exit_code == 0, done.output
