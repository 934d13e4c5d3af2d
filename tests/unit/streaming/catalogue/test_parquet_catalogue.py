"""Items and users from files equal those from the same records in topics."""

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streaming.catalogue.catalogue import Catalogue
from streaming.catalogue.inputs import require_inputs
from streaming.catalogue.parquet import ParquetCatalogue, has_catalogue
from streaming.config import StreamConfig
from streaming.events.hashing import feature_ids
from streaming.events.ids import integer_ids
from streaming.kafka.topics import BrokerUnavailable
from streaming.sources.parquet_source import ParquetSource, ParquetUnusable


def _write(folder, name, **columns):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=2)


def _ids(*names):
    return feature_ids(pa.array(names, pa.string())).tolist()


def test_titles_categories_and_attributes_are_read(tmp_path):
    _write(tmp_path, "items", item_id=[7, 8, 9], title=["a", None, "c"], categories=[["x", "y"], [], None])
    _write(tmp_path, "users", user_id=[1, 2], age=[30, None], city=["Bern", "Rome"])
    config = StreamConfig(parquet=str(tmp_path), user_attributes=["age", "city"])
    files, catalogue = ParquetCatalogue(config), Catalogue(config)
    catalogue.apply(files.read_to_end())
    assert catalogue.item_ids.tolist() == [7, 8, 9]
    assert catalogue.titles(np.array([7, 8, 9])) == ["a", "", "c"]
    assert catalogue.categories(np.array([7]))[0, :2].tolist() == _ids("x", "y")
    wanted = [_ids("age=30", "city=Bern"), [0, *_ids("city=Rome")]]
    assert catalogue.user_attributes(np.array([1, 2])).tolist() == wanted
    assert (files.poll(), files.positions(), files.dead_letters) == (None, {}, [])


def test_a_row_that_cannot_be_used_is_a_dead_letter_with_its_place(tmp_path):
    _write(tmp_path, "items", item_id=[1, None, 3], title=["a", "b", "c"])
    files = ParquetCatalogue(StreamConfig(parquet=str(tmp_path)))
    assert files.read_to_end().items["item_id"].to_pylist() == [1, 3]
    [letter] = files.dead_letters
    assert (letter.topic, letter.offset) == ("items.parquet", 1)


def test_a_value_that_python_cannot_hold_costs_its_row_alone_and_other_columns_nothing(tmp_path):
    year_10000 = pa.array([0, 253_402_300_800_000, 0], pa.timestamp("ms"))
    _write(tmp_path, "users", user_id=[b"ann", b"bob", b"1001"], since=year_10000, other=year_10000)
    found = {}
    for names in (["since"], ["city"]):
        files = ParquetCatalogue(StreamConfig(parquet=str(tmp_path), user_attributes=names))
        found[names[0]] = files.read_to_end().users["user_id"].to_pylist(), files.dead_letters
    ann, bob, number = integer_ids(["ann", "bob", 1001]).tolist()
    assert found["city"] == ([ann, bob, number], [])
    users, (letter,) = found["since"]
    assert users == [ann, number]
    assert (letter.topic, letter.offset) == ("users.parquet", 1)
    assert orjson.loads(letter.value) == {"user_id": "bob", "since": "10000-01-01 00:00:00.000"}


def test_a_file_that_is_none_is_named(tmp_path):
    (tmp_path / "users.parquet").write_text("no Parquet")
    with pytest.raises(ParquetUnusable, match=r"users\.parquet cannot be read"):
        ParquetCatalogue(StreamConfig(parquet=str(tmp_path))).read_to_end()


@pytest.mark.parametrize(("name", "own"), [("items", True), ("interactions", True), ("part-0", False)])
def test_a_data_set_has_its_own_catalogue_and_a_folder_of_events_has_the_topics(tmp_path, name, own):
    _write(tmp_path, name, item_id=[1])
    assert has_catalogue(str(tmp_path)) == has_catalogue(str(tmp_path / f"{name}.parquet")) == own


def test_users_without_attributes_are_known_all_the_same(tmp_path):
    _write(tmp_path, "users", user_id=[1, 2, 3])
    config = StreamConfig(parquet=str(tmp_path), user_attributes=[])
    catalogue = Catalogue(config)
    catalogue.apply(ParquetCatalogue(config).read_to_end())
    assert catalogue.user_attributes(np.array([1, 2, 3])).shape == (3, 0)
    assert catalogue.snapshot().users["user_id"].to_pylist() == [1, 2, 3]


def test_files_of_events_alone_need_a_broker_for_items_and_users_and_the_error_says_why(tmp_path):
    _write(tmp_path, "part-0", user_id=[1], item_id=[1], timestamp_ms=[1])
    unreachable = {"bootstrap_servers": "127.0.0.1:1", "connect_timeout_s": 0.2, "broker_patience_s": 0.0}
    config = StreamConfig(parquet=str(tmp_path), **unreachable)
    with pytest.raises(
        BrokerUnavailable, match=r"neither items\.parquet nor users\.parquet .* stream\.parquet"
    ):
        require_inputs(config)
    _write(tmp_path, "items", item_id=[1])
    require_inputs(config)


def test_items_and_users_are_not_read_as_events(tmp_path):
    _write(tmp_path, "items", item_id=[7])
    _write(tmp_path, "part-0", user_id=[1, 2], item_id=[7, 8], timestamp_ms=[1_700_000_000_000] * 2)
    source = ParquetSource(StreamConfig(parquet=str(tmp_path), parquet_partitions=1), [0], {})
    assert source.take({0: 9}).rows.num_rows == 2
