"""A data set laid out like MovieLens-1M, through the topics: what of it reaches the training batch and the model."""

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.datasets.datasets import DatasetError, load
from model.config import ModelConfig
from model.features import KeyCollector, query_inputs
from streaming.batches.batcher import Batcher
from streaming.catalogue.catalogue import Catalogue, CatalogueReader
from streaming.dead_letters.writer import DeadLetterWriter
from streaming.histories.history import UserStore
from streaming.producing.catalogue import publish_catalogue
from streaming.producing.replay import replay
from streaming.sources.kafka_source import KafkaSource, end_offsets
from tests.support.feature_ids import attribute_id, category_id
from tests.support.worker_runs import records_of

# Per user: gender, age and occupation as the file has them, and the texts that the stream carries.
USERS = {
    1: ("F", 1, 10, ("F", "under 18", "10")),
    2: ("M", 56, 16, ("M", "56+", "16")),
    3: ("M", 25, 15, ("M", "25-34", "15")),
    4: ("M", 56, 16, ("M", "56+", "16")),
}
# User, item, rating in the order of time; user 9 is in no users file, and some ratings are not known.
EVENTS = [(1, 5, 4), (9, 5, None), (1, 6, 2), (2, 7, None), (1, 8, 1), (4, 5, 3), (1, 7, 5), (3, 6, 1)]


@pytest.fixture
def dataset(tmp_path):
    text = pa.large_string()
    users = {
        "user_id": list(USERS),
        "gender": pa.array([gender for gender, *_ in USERS.values()], text),
        "age": [age for _, age, *_ in USERS.values()],
        "occupation": [occupation for _, _, occupation, _ in USERS.values()],
        "zip_code": pa.array(["48067"] * len(USERS), text),
    }
    items = {
        "item_id": [5, 6, 7, 8],
        "category": [2, 1, 4, 0],
        "genres": pa.array(["Animation|Children's", "Sci-Fi", "Film-Noir|War", "Drama"], text),
        "title": pa.array([f"Film {k} (1995)" for k in (5, 6, 7, 8)], text),
    }
    user, item, rating = zip(*EVENTS, strict=True)
    count = len(EVENTS)
    events = {
        "user_id": user,
        "item_id": item,
        "timestamp": [978300719 + k for k in range(count)],
        "category": [2] * count,
        "action": pa.array(["rate"] * count, text),
        "pos": pa.array(range(count), pa.int32()),
        "ts_quality": pa.array([4] * count, pa.int8()),
        "ts_lo": pa.nulls(count, pa.int64()),
        "rating": pa.array(rating, pa.int8()),
        "file_pos": pa.array(range(count), pa.int32()),
    }
    for name, columns in (("users", users), ("items", items), ("interactions", events)):
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    return load(tmp_path)


def _batch(config, dataset):
    """Everything published, read back and packed: the batch, and the catalogue."""
    publish_catalogue(config, dataset.items, dataset.users)
    assert replay(config, dataset).events == len(EVENTS)
    catalogue = Catalogue(config)
    with CatalogueReader(config) as reader:
        catalogue.apply(reader.read_to_end())
    ends = end_offsets(config, config.interactions_topic)
    users = UserStore(config.history_length, config.seen_length)
    with KafkaSource(config, sorted(ends), {}, ends) as source:
        batcher = Batcher(config, source, users, catalogue, DeadLetterWriter(config))
        assert batcher.wait_full(100, timeout_s=20)
        return batcher.next_batch(100), catalogue


def test_user_attributes_reach_the_user_tower_under_the_default_settings(stream_factory, dataset):
    config = stream_factory(partitions=2)
    batch, catalogue = _batch(config, dataset)
    assert config.user_attributes == ["gender", "age_group", "occupation"]
    found = dict(zip(batch["user_id"].to_pylist(), batch["attributes"].to_pylist(), strict=True))
    expected = {
        user: [attribute_id(name, text) for name, text in zip(config.user_attributes, texts, strict=True)]
        for user, (*_, texts) in USERS.items()
    }
    assert found == expected | {9: [0, 0, 0]}
    inputs = query_inputs(batch, catalogue.categories, KeyCollector(), ModelConfig(dim=8))
    rows = dict(zip(inputs.user_E.tolist(), inputs.attribute_row_EF.tolist(), strict=True))
    assert all(all(rows[user]) for user in USERS)
    assert rows[2] == rows[4] != rows[3]
    assert rows[9] == [0, 0, 0]


def test_titles_and_genres_reach_the_catalogue(stream_factory, dataset):
    _, catalogue = _batch(stream_factory(partitions=2), dataset)
    assert catalogue.titles(np.array([5, 7])) == ["Film 5 (1995)", "Film 7 (1995)"]
    expected = [category_id("Animation"), category_id("Children's"), 0]
    assert catalogue.categories(np.array([5]))[0, :3].tolist() == expected


def test_low_ratings_are_negatives_of_the_later_events_and_unknown_ones_are_not(stream_factory, dataset):
    # With W = 1 every target is a row of its own and knows one negative.
    config = stream_factory(partitions=2, negative_below_value=3.0, history_length=1)
    batch, _ = _batch(config, dataset)
    found = sorted((row["user_id"], row["items"], row["negatives"]) for row in batch.to_pylist())
    assert found == [(1, [5], []), (1, [5, 7], [8]), (2, [7], []), (4, [5], []), (9, [5], [])]


SECONDS = [1_700_000_000, 1_700_000_001, 1_700_000_002]
TIMES = {
    "float seconds": ("timestamp", pa.array(SECONDS, pa.float64())),
    "a half": ("timestamp", pa.array([s + 0.5 for s in SECONDS])),
    "int seconds": ("timestamp", pa.array(SECONDS)),
    "uint seconds": ("timestamp", pa.array(SECONDS, pa.uint32())),
    "int milliseconds": ("timestamp_ms", pa.array([1000 * s for s in SECONDS])),
    "float milliseconds": ("timestamp_ms", pa.array([1000.0 * s for s in SECONDS])),
    **{
        f"timestamp[{unit}]": (
            "timestamp",
            pa.array(SECONDS).cast(pa.timestamp("s")).cast(pa.timestamp(unit)),
        )
        for unit in ("s", "ms", "us", "ns")
    },
    "with a zone": (
        "timestamp",
        pa.array(SECONDS).cast(pa.timestamp("s", "UTC")).cast(pa.timestamp("us", "UTC")),
    ),
}


def _write_events(folder, name, column, item=7):
    folder.mkdir(exist_ok=True)
    columns = {"user_id": [1, 2, 3], "item_id": [item] * 3, name: column}
    pq.write_table(pa.table(columns), folder / "interactions.parquet")


def _replayed(stream, folder):
    names = ("bootstrap_servers", "interactions_topic", "items_topic", "users_topic")
    settings = [f"stream.{name}={getattr(stream, name)}" for name in names]
    return CliRunner().invoke(app, ["replay", "--dataset", str(folder), "--wire", "json", *settings])


def test_replay_sends_times_of_any_type_as_milliseconds(stream_factory, tmp_path):
    stream = stream_factory(4)
    for item, (name, column) in enumerate(TIMES.values()):
        _write_events(tmp_path / "data", name, column, item)
        result = _replayed(stream, tmp_path / "data")
        assert result.exit_code == 0, result.output
    events = [orjson.loads(record.value) for record in records_of(stream, stream.interactions_topic)]
    assert all(type(event["timestamp_ms"]) is int for event in events)
    for item, kind in enumerate(TIMES):
        after_ms = 500 if kind == "a half" else 0
        sent = sorted(event["timestamp_ms"] for event in events if event["item_id"] == item)
        assert sent == [1000 * second + after_ms for second in SECONDS], kind


def test_times_that_are_none_are_one_line_and_nothing_is_sent(stream_factory, tmp_path):
    stream = stream_factory(4)
    for column in (["2024-02-29"] * 3, [True] * 3, [None] * 3, [float("nan")] * 3, [[1]] * 3):
        _write_events(tmp_path / "data", "timestamp", column)
        result = _replayed(stream, tmp_path / "data")
        assert isinstance(result.exception, DatasetError)
        assert "interactions.parquet: column timestamp" in str(result.exception)
        assert "\n" not in str(result.exception)
    assert records_of(stream, stream.interactions_topic) == []
