"""A topic of a split's training events, read by the streaming trainer, is training on the split, to the bit."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.audit.exactly_once import verify_exactly_once
from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.checkpoints.parts.generators import seed_dropout
from cluster.evaluation.config import FitConfig, OfflineConfig, ProtocolConfig
from cluster.evaluation.measuring.ranking import rank
from cluster.evaluation.protocol.data import Tables, prepare
from cluster.evaluation.systems.systems import REFERENCE, SYSTEMS, create
from model.config import ModelConfig
from streaming.batches.batcher import Batcher
from streaming.catalogue.catalogue import Catalogue
from streaming.catalogue.reader import CatalogueReader
from streaming.dead_letters.writer import DeadLetterWriter
from streaming.histories.history import UserStore
from streaming.sources.kafka_source import KafkaSource, end_offsets
from tests.benchmarks.support.stream_passes import fill_topics, stream_passes, training_events
from tests.support.checkpoint_recommender import config_of, recommender_of

USERS, ITEMS, EVENTS, PARTITIONS, WINDOW = 40, 60, 900, 3, 8
BATCH = 96


def _tables():
    """Users come and go in bursts, and many of a user's events share a time."""
    rng = np.random.default_rng(5)
    user = np.repeat(rng.integers(1, USERS + 1, EVENTS), rng.integers(1, 12, EVENTS))[:EVENTS]
    columns = {
        "user_id": user,
        "item_id": rng.integers(1, ITEMS + 1, EVENTS),
        "timestamp_ms": 1_700_000_000_000 + np.arange(EVENTS) // 4 * 1000,
        "weight": rng.choice([0.5, 1.0, 2.0], EVENTS).astype(np.float32),
    }
    items = {
        "item_id": np.arange(1, ITEMS + 1),
        "title": [f"Item {k}" for k in range(ITEMS)],
        "categories": [[f"c{k % 5}"] for k in range(ITEMS)],
    }
    users = {"user_id": np.arange(1, USERS + 1), "gender": ["F", "M"] * (USERS // 2)}
    return Tables("bursts", pa.table(columns), pa.table(items), pa.table(users))


@pytest.fixture
def config(stream_factory):
    return OfflineConfig(
        stream=stream_factory(PARTITIONS, history_length=WINDOW, user_attributes=["gender"]),
        model=ModelConfig(
            dim=8,
            layers=1,
            augmented_dim=4,
            history_length=WINDOW,
            source_items=3,
            uniform_negatives=20,
            history_mask="past",
            dropout=0.2,
        ),
        fit=FitConfig(passes=2, batch_targets=BATCH, warmup_steps=7, schedule="constant", first_events=True),
        protocol=ProtocolConfig(shuffle_ties=True),
        device="cpu",
    )


def _batches(config):
    """What the worker gets in one pass, and the catalogue that it knows."""
    stream = config.stream
    catalogue = Catalogue(stream)
    with CatalogueReader(stream) as reader:
        catalogue.apply(reader.read_to_end())
    ends = end_offsets(stream, stream.interactions_topic)
    users, quota, batches = UserStore(WINDOW, stream.seen_length), BATCH // PARTITIONS, []
    with KafkaSource(stream, sorted(ends), {}, ends) as source:
        batcher = Batcher(stream, source, users, catalogue, DeadLetterWriter(stream))
        while batcher.wait_full(quota, 20.0) and batcher.ready_rows(quota):
            batches.append(batcher.next_batch(quota))
    return batches, catalogue


def test_a_pass_of_the_stream_trains_each_event_of_the_split_once_with_its_history(config):
    tables = _tables()
    split = prepare(tables, config).split
    fill_topics(config.stream, tables, training_events(split), PARTITIONS)
    events, found = split.interactions, []
    for row in (row for batch in _batches(config)[0] for row in batch.to_pylist()):
        u = int(np.searchsorted(events.user_U, row["user_id"]))
        first, known = events.offset_U1[u], row["events_before"]
        items, times, weights = (
            column[first : first + split.train_U[u]].tolist()
            for column in (events.item_T, events.time_T, events.weight_T)
        )
        count = len(row["items"]) - row["context_length"]
        start = max(0, known - WINDOW)
        assert row["context_length"] == known - start
        assert row["items"] == items[start : known + count]
        assert row["times_ms"] == times[start : known + count]
        assert row["weight"] == weights[known : known + count]
        assert row["seen"] == items[:known]
        assert row["attributes"] == events.attribute_UF[u].tolist()
        found += [(u, k) for k in range(known, known + count)]
    assert sorted(found) == [(u, k) for u, n in enumerate(split.train_U.tolist()) for k in range(n)]


def test_two_passes_of_the_worker_are_the_evaluations_steps_on_the_same_batches_to_the_bit(config, tmp_path):
    tables = _tables()
    data = prepare(tables, config)
    fill_topics(config.stream, tables, training_events(data.split), PARTITIONS)
    *_, checkpoint = stream_passes(config, tmp_path, passes=2)
    batches, catalogue = _batches(config)
    at_rest = create(SYSTEMS[REFERENCE], config, catalogue, data.item_ids, torch.device("cpu"))
    for number in range(2):
        seed_dropout(config.seed, 0, number * len(batches))
        for batch in batches:
            at_rest.train_on(batch)
    streamed = recommender_of(checkpoint, torch.device("cpu"))
    assert np.array_equal(streamed.encode_items(data.item_ids), at_rest.encode_items(data.item_ids))
    rankings = [
        rank(one, data.interactions, data.split.test, data.item_ids, window=WINDOW, exclude_seen=True)
        for one in (streamed, at_rest)
    ]
    assert np.array_equal(rankings[0].rank_G, rankings[1].rank_G)
    assert checkpoint.step == 2 * len(batches)
    for number in (1, 2):
        last = CheckpointStore(tmp_path / f"pass-{number}" / "checkpoints").newest()
        accounting = verify_exactly_once(config_of(last))
        assert accounting.exactly_once
        assert accounting.events_trained == data.split.train_U.sum()
