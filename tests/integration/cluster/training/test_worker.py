"""The worker loop on two ranks with a real broker, without Ray: trains once, saves, resumes, publishes."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from kafka import KafkaConsumer, KafkaProducer
from typer.testing import CliRunner

from cluster.audit.exactly_once import verify_exactly_once
from cluster.checkpoints.arrays import read_table, read_tensors
from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.checkpoints.claim import StorageTaken, claimed_by_run
from cluster.checkpoints.manifest import CheckpointError
from cluster.checkpoints.parts.rows import merged_rows
from cluster.checkpoints.parts.users import merged_users, partitions_in
from cluster.collectives import Collectives
from cluster.config import FreshetConfig, ProgressiveConfig, TrainConfig
from cluster.serving.recommender import NothingToServe, Recommender, UnknownUser
from cluster.training.refresh import refresh_from
from cluster.training.worker import Worker
from deploy.cli import app
from model.config import ModelConfig
from model.features import ITEM
from retrieval.storage.opening import open_storage
from streaming.config import StreamConfig
from streaming.producing.producer import EventProducer
from streaming.sources.kafka_source import KafkaSource, end_offsets
from tests.support.ranks import run_on_ranks

USERS, ITEMS = 40, 60


def _config(stream: StreamConfig, storage: Path, **train: object) -> FreshetConfig:
    return FreshetConfig(
        stream=stream,
        model=ModelConfig(dim=16, layers=1, heads=2, augmented_dim=8, uniform_negatives=20),
        train=TrainConfig(
            batch_events=64,
            bounded=True,
            publish_every_s=0,
            checkpoint_every_s=3600,
            checkpoints_to_keep=50,
            **train,
        ),
        progressive=ProgressiveConfig(sample_fraction=0.5, bin_events=100, served_cpu_share=0.0),
        device="cpu",
        storage_path=str(storage),
    )


def _produce(stream: StreamConfig, events: int, seed: int = 0, actions: Sequence[str] = ()) -> None:
    rng = np.random.default_rng(seed)
    with EventProducer(stream) as producer:
        for start in range(0, events, 50):
            count = min(50, events - start)
            columns = {
                "user_id": rng.integers(1, USERS + 1, count),
                "item_id": rng.integers(1, ITEMS + 1, count),
                "timestamp_ms": 1_700_000_000_000 + np.arange(start, start + count) * 1000,
            }
            if actions:
                columns["action"] = rng.choice(actions, count).tolist()
            producer.send(pa.RecordBatch.from_pydict(columns))
            producer.flush()


def _train(rank: int, *configs: FreshetConfig) -> list[dict]:
    """One run after the other, each from what lies in its storage: as if by processes of their own, but quicker."""
    return [Worker(config, Collectives(), torch.device("cpu")).train() for config in configs]


def _train_and_refresh(rank: int, config: FreshetConfig, report: str) -> dict:
    progress = _train(rank, config)[0]
    newest = CheckpointStore(Path(config.storage_path) / "checkpoints").newest()
    refresh_from(
        config, Collectives(), torch.device("cpu"), checkpoint_path=newest.location, report_path=Path(report)
    )
    return progress


def _state(storage: Path) -> dict[str, np.ndarray]:
    """Everything that training made, keyed so that it does not depend on how rows are spread."""
    checkpoint = CheckpointStore(storage / "checkpoints").newest()
    state = {k: t.numpy() for k, t in read_tensors(checkpoint.file("towers.safetensors")).items()}
    rows = merged_rows(checkpoint.files("rows-"))
    for name in ("table", "id", "frequency"):
        state[f"rows.{name}"] = rows[name].to_numpy()
    state["rows.value"] = rows["value"].combine_chunks().flatten().to_numpy().reshape(rows.num_rows, -1)
    for partition in partitions_in(checkpoint):
        table = merged_users(checkpoint, partition)
        for name in ("items", "negatives"):
            state[f"users-{partition} {name}"] = table[name].combine_chunks().flatten().to_numpy()
    return state


def test_two_ranks_train_every_event_once_and_bad_events_go_to_the_dead_letter_topic(stream_config, tmp_path):
    _produce(stream_config, 600)
    with KafkaProducer(bootstrap_servers=stream_config.bootstrap_servers) as producer:
        producer.send(stream_config.interactions_topic, key=b"1", value=b"no json at all", partition=2)
        producer.send(stream_config.interactions_topic, key=b"1", value=b'{"user_id": 1}', partition=3)
    _produce(stream_config, 100, seed=1)
    config = _config(stream_config, tmp_path)
    report = tmp_path / "report.json"
    progress = run_on_ranks(_train_and_refresh, 2, config, str(report))[0]
    assert progress["events_trained"] == 700
    assert progress["dead_letters"] == 2
    accounting = verify_exactly_once(config)
    assert accounting.exactly_once
    assert (accounting.events_in_topic, accounting.dead_letters_in_topic) == (700, 2)
    letters = _messages(stream_config, stream_config.dead_letters)
    reasons = sorted(dict(m.headers)["reason"].decode() for m in letters)
    assert len(reasons) == 2
    assert "JSON" in " ".join(reasons)
    assert "item_id" in " ".join(reasons)
    assert {dict(m.headers)["partition"] for m in letters} == {b"2", b"3"}
    sample = sum(progress["progressive"]["sample"])
    assert 0 < sample < 700
    assert progress["index"]["versions"] == 1

    # Embedding rows exist on exactly one rank.
    checkpoint = CheckpointStore(tmp_path / "checkpoints").newest()
    parts = [read_table(file) for file in checkpoint.files("rows-")]
    keys = [set(zip(p["table"].to_pylist(), p["id"].to_pylist(), strict=True)) for p in parts]
    assert len(parts) == 2
    assert all(len(k) > 20 for k in keys)
    assert not keys[0] & keys[1]

    # The version answers, without what the user has had, and the one made again from the checkpoint agrees.
    recommender = Recommender(config)
    assert recommender.version == "v00000002"
    assert json.loads(report.read_text())["version"] == "v00000002"
    items = _items_of(checkpoint, 1)
    found = recommender.recommend(user_id=1, k=5)
    assert len(found) == 5
    assert not {r.item_id for r in found} & items
    assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)
    rollback = ["index", "rollback", f"storage_path={tmp_path}", "--to", "v00000001"]
    assert CliRunner().invoke(app, rollback).exit_code == 0
    again = Recommender(config).recommend(user_id=1, k=5)
    assert [r.item_id for r in again] == [r.item_id for r in found]
    assert Recommender(config).recommend(history=sorted(items), k=3)
    with pytest.raises(UnknownUser, match="user 999"):
        recommender.recommend(user_id=999)


ACTIONS = ["like", "skip", "look"]
SIGNALS = {"positive_actions": ["like"], "negative_actions": ["skip"], "action_weights": ["like=0.5"]}


@pytest.mark.parametrize("signals", [{}, SIGNALS], ids=["all positive", "signals"])
def test_a_run_that_was_cut_and_resumed_ends_as_one_that_was_not(stream_factory, tmp_path, signals):
    stream = stream_factory(2, **signals)
    _produce(stream, 400, actions=ACTIONS)
    part, rest = (_config(stream, tmp_path / "cut", stop_after_rows=rows) for rows in (150, 0))
    runs = run_on_ranks(_train, 2, _config(stream, tmp_path / "whole"), part, rest)[0]
    assert 150 <= runs[1]["rows_read"] < 400
    whole, cut = _state(tmp_path / "whole"), _state(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(value, cut[name], err_msg=name)
    assert verify_exactly_once(_config(stream, tmp_path / "cut")).exactly_once


def test_three_ranks_go_on_from_the_checkpoint_of_two(stream_factory, tmp_path):
    stream = stream_factory(3)
    _produce(stream, 300)
    run_on_ranks(_train, 2, _config(stream, tmp_path, stop_after_rows=120))
    run_on_ranks(_train, 3, _config(stream, tmp_path))
    accounting = verify_exactly_once(_config(stream, tmp_path))
    assert accounting.exactly_once
    assert accounting.events_trained == 300


def test_two_ranks_start_from_what_one_has_learnt_and_read_their_own_stream(stream_factory, tmp_path):
    stream, silent = stream_factory(2), stream_factory(2)
    _produce(stream, 300)
    _train(0, _config(stream, tmp_path / "first"))
    start = str(tmp_path / "first")
    runs = run_on_ranks(
        _train,
        2,
        _config(silent, tmp_path / "silent", init_from=start),
        _config(stream, tmp_path / "whole", init_from=start),
        _config(stream, tmp_path / "cut", init_from=start, stop_after_rows=120),
        # The first run is gone: one that has a checkpoint of its own does not ask for it.
        _config(stream, tmp_path / "cut", init_from=str(tmp_path / "nowhere")),
    )[0]
    first, silent_state, whole, cut = (_state(tmp_path / n) for n in ("first", "silent", "whole", "cut"))
    manifests = {
        n: CheckpointStore(tmp_path / n / "checkpoints").newest().manifest for n in ("first", "silent", "cut")
    }

    # Without events the run is what it started from, but for histories and positions.
    learnt = [name for name in first if not name.startswith("users-")]
    for name in learnt:
        np.testing.assert_array_equal(silent_state[name], first[name], err_msg=name)
    assert all(silent_state[name].size == 0 for name in silent_state if name.startswith("users-"))
    assert set(map(tuple, manifests["silent"]["positions"].values())) == {(0, 0)}
    kept = ("step", "events_seen", "events_trained", "rows_read")
    assert [manifests["silent"][name] for name in kept] == [manifests["first"]["step"], 300.0, 0, 0]

    # With them it trains each once, and a cut changes nothing.
    assert [run["rows_read"] for run in runs[1:]] == [300, runs[2]["rows_read"], 300]
    assert 120 <= runs[2]["rows_read"] < 300
    for name, value in whole.items():
        np.testing.assert_array_equal(value, cut[name], err_msg=name)
    for name in set(first) - set(learnt):
        np.testing.assert_array_equal(cut[name], first[name], err_msg=name)
    assert not np.array_equal(cut["rows.value"], first["rows.value"])
    # An item's events; the frequency of other rows is in how many steps they were.
    items = cut["rows.table"] == ITEM
    assert cut["rows.frequency"][items].sum() == manifests["cut"]["events_seen"] == 600
    assert manifests["cut"]["step"] == 2 * manifests["first"]["step"]
    origin = CheckpointStore(tmp_path / "first" / "checkpoints").newest()
    assert manifests["cut"]["init_from"] == {"path": origin.location, "step": origin.step}
    assert verify_exactly_once(_config(stream, tmp_path / "cut")).exactly_once


def test_a_starting_point_that_is_none_is_refused_before_ray_starts(stream_config, tmp_path):
    from cluster.launching.launcher import run_training

    with pytest.raises(CheckpointError, match=r"nowhere is not a folder.*setting: train\.init_from"):
        run_training(_config(stream_config, tmp_path / "run", init_from=str(tmp_path / "nowhere")))


def test_negatives_and_ignored_events_are_accounted_for_and_kept_by_whoever_reads_on(
    stream_factory, tmp_path
):
    stream = stream_factory(3, **SIGNALS)
    _produce(stream, 150, actions=ACTIONS)
    _produce(stream, 40, seed=1, actions=["skip"])
    run_on_ranks(_train, 2, _config(stream, tmp_path, stop_after_rows=90))
    progress = run_on_ranks(_train, 3, _config(stream, tmp_path))[0][0]
    accounting = verify_exactly_once(_config(stream, tmp_path))
    assert accounting.exactly_once
    rows = _rows_in_topic(stream)
    counts = Counter(row["action"] for row in rows)
    found = (accounting.events_trained, accounting.events_negative, accounting.events_ignored)
    assert found == (counts["like"], counts["skip"], counts["look"])
    assert found == tuple(progress[f"events_{kind}"] for kind in ("trained", "negative", "ignored"))
    assert progress["rows_read"] == accounting.events_in_topic == sum(found) == 190
    expected = defaultdict(list)
    for row in rows:
        if row["action"] == "skip":
            expected[row["user_id"]].append(row["item_id"])
    newest = CheckpointStore(tmp_path / "checkpoints").newest()
    saved = [
        row for partition in partitions_in(newest) for row in merged_users(newest, partition).to_pylist()
    ]
    assert {row["user_id"]: row["negatives"] for row in saved if row["negatives"]} == expected


def _rows_in_topic(stream: StreamConfig) -> list[dict]:
    ends = end_offsets(stream, stream.interactions_topic)
    rows = []
    with KafkaSource(stream, sorted(ends), {}, ends) as source:
        while not source.finished:
            source.wait(1.0)
            rows += source.take(dict.fromkeys(ends, 1000)).rows.to_pylist()
    return rows


def test_a_run_without_versions_says_what_to_do(stream_config, tmp_path):
    with pytest.raises(NothingToServe, match="freshet train"):
        Recommender(_config(stream_config, tmp_path))


def _messages(stream: StreamConfig, topic: str) -> list:
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=stream.bootstrap_servers,
        auto_offset_reset="earliest",
        consumer_timeout_ms=3000,
    )
    try:
        return list(consumer)
    finally:
        consumer.close()


def _items_of(checkpoint, user: int) -> set[int]:
    for partition in partitions_in(checkpoint):
        for row in merged_users(checkpoint, partition).to_pylist():
            if row["user_id"] == user:
                return set(row["items"])
    raise AssertionError(f"user {user} is in no file")


def _train_until_somebody_else_takes_over(config: FreshetConfig, other: FreshetConfig) -> dict:
    """One run that at its first checkpoint finds a second one started on its storage, which ends first."""
    others = []

    def start_another(progress):
        if not others:
            with claimed_by_run(open_storage(other.checkpoint_location), "second", take_over=True):
                others.append(Worker(other, Collectives(), torch.device("cpu"), run_id="second").train())

    with pytest.raises(StorageTaken, match="taken over by run second"):
        Worker(
            config, Collectives(), torch.device("cpu"), run_id="first", on_checkpoint=start_another
        ).train()
    return others[0]


def test_a_second_run_on_the_same_storage_goes_on_and_the_first_one_stops_without_harm(
    stream_config, tmp_path
):
    _produce(stream_config, 2000)
    config = _config(stream_config, tmp_path)
    first = replace(config, train=replace(config.train, checkpoint_every_s=0.05))
    progress = _train_until_somebody_else_takes_over(first, config)
    assert progress["events_trained"] == 2000
    newest = CheckpointStore(tmp_path / "checkpoints").newest()
    assert newest.manifest["events_trained"] == 2000
    assert verify_exactly_once(config).exactly_once
