"""`freshet dead-letters`: lists letters, and replays corrected ones exactly once, even after a crash."""

import json
import multiprocessing
import os
from collections import Counter
from dataclasses import replace

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from kafka import KafkaProducer
from typer.testing import CliRunner

from cluster.audit.exactly_once import verify_exactly_once
from deploy.cli import app
from streaming.config import StreamConfig
from streaming.dead_letters import replay as dead_letter_replay
from streaming.dead_letters.replay import read_letters, replay_letters
from tests.support.worker_runs import START_MS, config_of, events, produce, records_of, send_raw, train


def _without_item(n: int) -> dict[str, object]:
    return {"user_id": n % 7, "timestamp_ms": START_MS + n * 1000}


def _run(stream: StreamConfig, *arguments: str) -> None:
    names = ("bootstrap_servers", "interactions_topic", "items_topic", "users_topic")
    result = CliRunner().invoke(
        app, ["dead-letters", *arguments, *(f"stream.{name}={getattr(stream, name)}" for name in names)]
    )
    assert result.exit_code == 0, result.output


def test_letters_are_listed_by_reason_edited_in_a_file_or_by_options_and_replayed_once(
    stream_factory, tmp_path
):
    stream = stream_factory(2)
    produce(stream, events(100))
    send_raw(stream, [{"value": _without_item(n), "key": str(n % 7).encode()} for n in range(20)])
    send_raw(stream, [{"value": b"{broken", "partition": 1}])
    send_raw(
        stream, [{"value": {**_without_item(n), "item_id": 5, "weight": "x"}, "partition": 0} for n in (1, 2)]
    )
    config = config_of(stream, tmp_path / "run")
    train(0, config)
    _run(stream, "list", "--json", str(tmp_path / "list.json"), "--out", str(tmp_path / "letters.jsonl"))
    listed = json.loads((tmp_path / "list.json").read_text())
    reasons = {reason["reason"]: reason["count"] for reason in listed["reasons"]}
    assert listed["letters"] == 23
    assert reasons["item_id is missing"] == 20
    assert sorted(reasons.values()) == [1, 2, 20]
    assert [len(reason["samples"]) for reason in listed["reasons"]] == [3, 2, 1]

    # By options those without an item, from an edited file the broken one.
    missing = ["--reason", "item_id is missing", "--set", "item_id=9"]
    for _ in range(2):
        _run(stream, "replay", *missing, "--json", str(tmp_path / "replay.json"))
    assert json.loads((tmp_path / "replay.json").read_text())["already"] == 20
    lines = [json.loads(line) for line in (tmp_path / "letters.jsonl").read_text().splitlines()]
    (broken,) = (line for line in lines if line["value"] == "{broken")
    broken["value"] = {"user_id": "someone", "item_id": "something", "timestamp_ms": START_MS}
    (tmp_path / "edited.jsonl").write_text(json.dumps(broken) + "\n")
    _run(stream, "replay", "--from", str(tmp_path / "edited.jsonl"))
    _run(stream, "replay", "--json", str(tmp_path / "replay.json"))
    rest = json.loads((tmp_path / "replay.json").read_text())
    assert (rest["replayed"], rest["already"], rest["unusable"]) == (0, 21, 2)
    assert all("weight must be a number" in problem for problem in rest["problems"].values())

    # A run that goes on from before the bad rows writes their letters again: they stay marked.
    (progress,) = train(0, config)
    train(0, config_of(stream, tmp_path / "anew"))
    assert sum(letter.replayed for letter in read_letters(stream)) == 21
    assert replay_letters(stream, lambda letter: letter.event).replayed == 0
    accounting = verify_exactly_once(config)
    assert accounting.exactly_once, accounting
    assert accounting.events_trained == progress["events_trained"] == 100 + 21
    back = [
        orjson.loads(r.value)
        for r in records_of(stream, stream.interactions_topic)
        if b"dead-letter:" in r.value
    ]
    assert Counter(event["item_id"] for event in back) == {9: 20, "something": 1}


def test_letters_of_rows_of_files_are_mended_and_come_back_by_the_topic(stream_factory, tmp_path):
    stream = stream_factory(2)
    for first, folder in ((0, "monday"), (40, "tuesday")):  # both name their file interactions.parquet
        (tmp_path / folder).mkdir()
        rows = pa.Table.from_batches([events(40, first=first)])
        seconds = pa.array(rows["timestamp_ms"].to_numpy() / 1000)
        bad = pa.array([None if n in (3, 4, 17) else n for n in range(40)], pa.int64())
        rows = rows.drop(["timestamp_ms"]).append_column("timestamp", seconds).set_column(1, "item_id", bad)
        pq.write_table(rows, tmp_path / folder / "interactions.parquet", row_group_size=15)
        files = replace(stream, parquet=str(tmp_path / folder), parquet_partitions=3)
        (progress,) = train(0, config_of(files, tmp_path / f"{folder}-run"))
        assert progress["events_trained"] == 37
    assert len(read_letters(stream)) == 6
    for _ in range(2):
        _run(stream, "replay", "--set", "item_id=9", "--json", str(tmp_path / "replay.json"))
    replayed = json.loads((tmp_path / "replay.json").read_text())
    assert (replayed["replayed"], replayed["already"], replayed["unusable"]) == (0, 6, 0)
    config = config_of(stream, tmp_path / "live")
    (progress,) = train(0, config)
    accounting = verify_exactly_once(config)
    assert accounting.exactly_once, accounting
    assert progress["events_trained"] == accounting.events_trained == 6
    back = [orjson.loads(record.value) for record in records_of(stream, stream.interactions_topic)]
    assert {event["item_id"] for event in back} == {9}
    times = [START_MS + 1000 * n for n in (3, 4, 17, 43, 44, 57)]
    assert sorted(event["timestamp_ms"] for event in back) == times
    # A run over a file again writes its letters again: they stay marked.
    monday = replace(stream, parquet=str(tmp_path / "monday"), parquet_partitions=3)
    train(0, config_of(monday, tmp_path / "again"))
    assert [letter.replayed for letter in read_letters(stream)] == [True] * 6


def _replay_and_die(stream: StreamConfig) -> None:
    """Dies in the middle of the second transaction: everything is sent, nothing committed."""
    dead_letter_replay.LETTERS_PER_TRANSACTION = 8
    commits = [0]
    commit = KafkaProducer.commit_transaction

    def die(producer: KafkaProducer) -> None:
        commits[0] += 1
        if commits[0] == 2:
            producer.flush()
            os._exit(9)
        commit(producer)

    KafkaProducer.commit_transaction = die
    replay_letters(stream, lambda letter: {**letter.event, "item_id": 9})


def test_a_replay_that_dies_half_way_and_runs_again_doubles_and_loses_nothing(stream_factory, tmp_path):
    stream = stream_factory(2)
    send_raw(stream, [{"value": _without_item(n), "key": str(n % 7).encode()} for n in range(20)])
    config = config_of(stream, tmp_path)
    train(0, config)
    process = multiprocessing.get_context("spawn").Process(target=_replay_and_die, args=(stream,))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert sum(letter.replayed for letter in read_letters(stream)) == 8
    report = replay_letters(stream, lambda letter: {**letter.event, "item_id": 9})
    assert (report.already, report.replayed) == (8, 12)
    back = [
        orjson.loads(r.value)
        for r in records_of(stream, stream.interactions_topic)
        if b"dead-letter:" in r.value
    ]
    assert len({event["event_id"] for event in back}) == len(back) == 20
    train(0, config)
    accounting = verify_exactly_once(config)
    assert accounting.exactly_once, accounting
    assert accounting.events_trained == 20
