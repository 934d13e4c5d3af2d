"""A data set laid out like MovieLens-1M, through the topics: what of it reaches the training batch and the model."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deploy.datasets import load
from model.config import ModelConfig
from model.features import KeyCollector, query_inputs
from streaming.batcher import Batcher
from streaming.catalogue import Catalogue, CatalogueReader
from streaming.dead_letter import DeadLetterWriter
from streaming.hashing import attribute_id, category_id
from streaming.history import UserStore
from streaming.producer import publish_catalogue, replay
from streaming.source import KafkaSource, end_offsets

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
