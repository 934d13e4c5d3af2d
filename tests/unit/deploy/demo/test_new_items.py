"""Items that appear while the demo runs: which ones, their records, and the time until a model has them."""

import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from deploy.datasets.datasets import Dataset
from deploy.demo.new_items import COUNT, NewItems

EVENTS, ITEMS = 4000, 200


@pytest.fixture
def dataset():
    """Item n occurs for the first time in event 20 n, and item 0 in all between."""
    times = list(range(EVENTS))
    items = [n // 20 if n % 20 == 0 else 0 for n in times]
    interactions = pa.table({"user_id": times, "item_id": items, "timestamp_ms": times})
    titles = [f"title {n}" for n in range(ITEMS)]
    records = pa.table({"item_id": list(range(ITEMS)), "title": titles, "categories": [["c"]] * ITEMS})
    return Dataset("a set", interactions, records, pa.table({}), {})


@pytest.fixture
def published(monkeypatch):
    published = []
    monkeypatch.setattr(
        "streaming.producing.catalogue.publish_catalogue",
        lambda stream, items, users: published.extend(items["title"].to_pylist()),
    )
    return published


def items_of(dataset):
    return NewItems(SimpleNamespace(seed=1, stream=None), dataset)


def model_with(*ids):
    return SimpleNamespace(
        items=SimpleNamespace(holds=lambda asked: np.isin(asked, ids)),
        delta=3,
        version=SimpleNamespace(name="v00000002"),
    )


def test_new_items_first_occur_in_the_later_stream_and_have_no_record_at_the_start(dataset):
    new = items_of(dataset)
    assert new.count == COUNT
    first = sorted(new._first_event.values())
    assert (first[0], first[-1]) == (1000, 3580)
    known = new.known_before(dataset).items["item_id"].to_pylist()
    assert len(known) == ITEMS - COUNT
    assert not set(known) & {event // 20 for event in first}


def test_an_item_is_published_when_it_appears_and_told_once_when_a_model_has_it(dataset, published):
    new = items_of(dataset)
    new.produced(999)
    before = time.time()
    new.produced(1001)  # has event 1000, the first of item 50
    new._publish()
    assert published == ["title 50"]
    new._look(model_with(49))
    assert new.take_news() == []
    new._look(model_with(50))
    [sentence] = new.take_news()
    assert sentence.startswith("new item: title 50 can be recommended ")
    assert sentence.endswith(" s (d3 of v2)")
    new._look(model_with(50))
    assert (new.take_news(), len(new.seconds)) == ([], 1)
    assert new.seconds[0] >= time.time() - before - 1


def test_without_records_nothing_is_watched():
    table = pa.table({"user_id": [1], "item_id": [1], "timestamp_ms": [1]})
    data = Dataset("a set", table, pa.table({}), pa.table({}), {})
    with items_of(data) as new:
        assert new.count == 0
        assert new.known_before(data).items.num_rows == 0
    assert new.take_news() == []


def test_an_error_of_the_thread_is_raised_by_the_next_look_at_the_news(dataset, monkeypatch):
    def broken(config):
        return SimpleNamespace(following=lambda every_s: 1 / 0, close=lambda: None)

    monkeypatch.setattr("cluster.queries.served_model.follow_models", broken)
    with items_of(dataset) as new:
        new._thread.join(30)
    with pytest.raises(ZeroDivisionError):
        new.take_news()
