"""Items without a row of their own yet (`table.admit_after`) are still served, from a shared row and a category."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from cluster.audit.state import read_state
from cluster.checkpoints.parts.towers import FILE as TOWERS
from cluster.checkpoints.parts.towers import load_towers
from cluster.serving.recommender import Recommender
from cluster.tables.buckets import shared_keys
from cluster.tables.config import TableConfig
from model.cl_epidtn import cl_epidtn
from model.features import CATEGORY, ITEM, ItemInputs
from retrieval.versions.searcher import Searcher
from streaming.producing.catalogue import publish_catalogue
from tests.support.ranks import run_on_ranks
from tests.support.worker_runs import config_of, events, newest, produce, train

POPULAR = 8
ADMIT_AFTER = 20


def _ids_of_one_bucket(count: int) -> np.ndarray:
    """Item ids whose shared row is the same one."""
    ids = np.arange(1000, 60_000)
    buckets = shared_keys(np.full(ids.shape, ITEM, np.int16), ids)[1]
    return ids[buckets == buckets[0]][:count]


def _served_vectors(config) -> dict[int, np.ndarray]:
    """Every vector of the live index, by item: its inner products with the unit vectors are its columns."""
    searcher = Searcher(Path(config.storage_path) / "index")
    items = int(searcher.version.manifest["items"])
    ids, columns = searcher.search(np.eye(config.model.dim, dtype=np.float32), items)
    by_item = [dict(zip(*column, strict=True)) for column in zip(ids.tolist(), columns, strict=True)]
    return {item: np.array([column[item] for column in by_item]) for item in ids[0].tolist()}


def _vector_by_hand(model, row: list[float], category: list[float]) -> np.ndarray:
    """The item tower on a row and a category's row, and nothing else."""
    rows_UD = torch.tensor([[0.0] * len(row), row, category])
    nothing = torch.zeros(0, dtype=torch.int64)
    items = ItemInputs(
        torch.tensor([0]), torch.tensor([1]), torch.tensor([[2]]), torch.tensor([False]), nothing
    )
    with torch.no_grad():
        return model.encode_items(rows_UD, items).vectors_CD[0].numpy()


def test_an_item_without_a_row_of_its_own_is_published_and_recommended_by_its_shared_row_and_its_category(
    stream_factory, tmp_path
):
    stream = stream_factory(2)
    first, other, alike, never = waiting = [int(n) for n in _ids_of_one_bucket(4)]
    kinds = {first: "red", other: "blue", alike: "red", never: "blue"}
    items = {"item_id": [*range(1, POPULAR + 1), *waiting], "title": [f"title {n}" for n in range(12)]}
    kind_of = [["green"] if item <= POPULAR else [kinds[item]] for item in items["item_id"]]
    publish_catalogue(stream, pa.table(items | {"categories": kind_of}), None)
    produce(stream, events(400, items=POPULAR))
    few = events(6, first=400, users=6)
    few = few.set_column(1, "item_id", pa.array([first, other, first, alike, other, first]))
    produce(stream, few)
    config = config_of(stream, tmp_path)
    config.table = TableConfig(admit_after=ADMIT_AFTER)
    config.model.source_items = 0  # their rows are another table's, and so of other buckets
    config.index.kind = "ivf_flat"  # float16 would round what is compared here
    run_on_ranks(train, 2, config)

    # Trained, counted, and without rows: all four stand behind one row of the table and their bucket.
    checkpoint = newest(config)
    state = read_state(checkpoint)
    rows = {(row["table"], row["id"]): row for row in state.rows.to_pylist()}
    tables, buckets = shared_keys(np.full(4, ITEM, np.int16), np.array(waiting))
    assert len(set(buckets.tolist())) == 1
    shared = rows[int(tables[0]), int(buckets[0])]
    assert np.any(shared["state.first_moment"])
    assert {key for key in rows if key[0] == ITEM} == {(ITEM, item) for item in range(1, POPULAR + 1)}
    counted = [
        row for name, t in state.tables.items() if name.startswith("waiting-") for row in t.to_pylist()
    ]
    assert {row["id"]: row["frequency"] for row in counted if row["table"] == ITEM} == {
        first: 3.0,
        other: 2.0,
        alike: 1.0,
    }

    # The version has each of them, as the trained towers see its shared row and its own category.
    model = cl_epidtn(config.model, len(stream.user_attributes))
    load_towers(checkpoint.file(TOWERS), model)
    model.eval()
    category_ids = {
        row["item_id"]: row["categories"] for row in state.tables["catalogue-items.arrow"].to_pylist()
    }
    served = _served_vectors(config)
    assert set(served) == {*range(1, POPULAR + 1), *waiting}
    for item in waiting:
        (category,) = category_ids[item]
        expected = _vector_by_hand(model, shared["value"], rows[CATEGORY, category]["value"])
        np.testing.assert_allclose(served[item], expected, atol=1e-5)
    np.testing.assert_allclose(served[first], served[alike], atol=1e-6)
    assert np.abs(served[first] - served[other]).max() > 1e-3

    # It is recommended, and asked with: of a history only the shared row and the category are known too.
    recommender = Recommender(config)
    found = {one.item_id: one for one in recommender.recommend(history=[1, 2], k=12)}
    assert set(found) == {*range(3, POPULAR + 1), *waiting}
    assert found[first].title == "title 8"
    assert found[first].score == found[alike].score != found[other].score
    scores = [
        [one.score for one in recommender.recommend(history=[item], k=12) if one.item_id <= POPULAR]
        for item in (first, alike, other)
    ]
    assert len(scores[0]) == POPULAR
    assert scores[0] == scores[1] != scores[2]
