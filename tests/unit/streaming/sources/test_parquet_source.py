"""Events in files: times in any unit, validated by the files' content alone."""

import logging
import os
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streaming.config import StreamConfig
from streaming.events.position import RowPlace
from streaming.sources.parquet_source import ParquetSource, ParquetUnusable

START_MS = 1_700_000_000_000


def _read(path):
    source = ParquetSource(StreamConfig(parquet=str(path), parquet_partitions=1, max_future_s=1.0), [0], {})
    return source.take({0: 1000})


def _write(path, times, name="timestamp_ms"):
    rows = len(times)
    pq.write_table(pa.table({"user_id": range(rows), "item_id": range(rows), name: times}), path)
    return path


def test_a_file_that_was_modified_before_its_events_holds_none_of_the_future(tmp_path):
    path = _write(tmp_path / "a.parquet", [START_MS + n for n in range(40)])
    os.utime(path, (0, 0))
    found = _read(path)
    assert (found.rows.num_rows, found.dead) == (40, [])


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("name", ["timestamp_ms", "timestamp"])
@pytest.mark.parametrize("zone", [None, "Asia/Tokyo"])
def test_times_are_read_in_the_unit_of_their_column(tmp_path, unit, name, zone):
    moment = datetime.fromtimestamp(START_MS / 1000, UTC)
    times = pa.array([moment, None], pa.timestamp(unit, "UTC")).cast(pa.timestamp(unit, zone))
    found = _read(_write(tmp_path / "a.parquet", times, name))
    assert found.rows["timestamp_ms"].to_pylist() == [START_MS]
    assert [letter.reason for letter in found.dead] == ["timestamp_ms is missing"]


def test_numbers_of_a_column_timestamp_are_seconds(tmp_path):
    found = _read(_write(tmp_path / "a.parquet", [START_MS // 1000], "timestamp"))
    assert found.rows["timestamp_ms"].to_pylist() == [START_MS]


def test_times_that_a_wrong_unit_makes_are_said_once_for_each_file(tmp_path, caplog):
    path = tmp_path / "a.parquet"
    table = pa.table({"user_id": range(6), "item_id": range(6), "timestamp": [START_MS] * 6})
    pq.write_table(table, path, row_group_size=2)
    with caplog.at_level(logging.WARNING):
        assert ["year 10000" in letter.reason for letter in _read(path).dead] == [True] * 6
    [record] = [record for record in caplog.records if record.name.startswith("streaming.")]
    assert "a year before 1971 or after 2200" in record.getMessage()
    assert str(path) in record.getMessage()


def test_a_column_of_times_that_holds_none_is_named(tmp_path):
    path = _write(tmp_path / "a.parquet", ["now"], "timestamp")
    with pytest.raises(
        ParquetUnusable, match=r"a\.parquet holds no events: column timestamp must .*stream\.parquet"
    ):
        _read(path)


@pytest.mark.parametrize("bomb", ["nulls", "texts", "numbers"])
def test_a_row_group_that_decodes_to_too_much_is_one_line_before_it_is_decoded(tmp_path, bomb):
    rows = 200_000
    columns = {name: pa.array(np.full(rows, 7)) for name in ("user_id", "item_id", "timestamp_ms")}
    more = {
        "nulls": {f"n{n}": pa.nulls(rows) for n in range(200)},
        "texts": {"action": pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), ["x" * 100_000])},
        "numbers": {f"n{n}": pa.array(np.zeros(rows, np.int64)) for n in range(200)},
    }
    pq.write_table(
        pa.table(columns | more[bomb]), tmp_path / "events.parquet", compression="zstd", store_schema=False
    )
    assert (tmp_path / "events.parquet").stat().st_size < 400_000
    source = ParquetSource(
        StreamConfig(parquet=str(tmp_path), parquet_partitions=1, max_row_group_bytes=50_000_000), [0], {}
    )
    with pytest.raises(ParquetUnusable, match=r"decodes to \d+ bytes or more, .*stream\.max_row_group_bytes"):
        source.ready_rows()


def test_texts_are_read_as_they_are_whatever_the_encoding(tmp_path):
    texts = pa.array(["a", None, "b", "a"])
    table = pa.table(
        {
            "user_id": [1, 2, 3, 4],
            "item_id": texts.cast(pa.large_string()).fill_null("z"),
            "timestamp_ms": [5, 6, 7, 8],
            "action": texts,
            "event_id": texts.dictionary_encode(),
        }
    )
    pq.write_table(
        table, tmp_path / "events.parquet", use_dictionary=["item_id", "event_id"], row_group_size=3
    )
    source = ParquetSource(StreamConfig(parquet=str(tmp_path), parquet_partitions=1), [0], {})
    source.wait_full(4, 0)
    rows = source.take({0: 10}).rows
    assert rows["action"].to_pylist() == rows["event_id"].to_pylist() == texts.to_pylist()


def test_rows_of_two_files_of_one_name_come_from_different_places(tmp_path):
    """A letter of an event that no step could be made with is named as one that could not be read."""
    named = []
    for folder, rows in (("a", 2), ("b", 3)):
        (tmp_path / folder).mkdir()
        path = _write(tmp_path / folder / "events.parquet", [None, *[START_MS] * rows])
        source = ParquetSource(StreamConfig(parquet=str(path), parquet_partitions=1), [0], {})
        [letter] = source.take({0: 10}).dead
        named.append(source.came_from(RowPlace(0, 0, 1)))
        assert named[-1] == (letter.topic, letter.topic_id)
    assert named[0] != named[1]
