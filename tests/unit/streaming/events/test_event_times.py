"""Event times in files are read in their own unit."""

from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pytest

from streaming.events.times import implausible, time_column, times_in_ms

MOMENT = datetime(2024, 2, 29, 12, 30, 15, 250_000, UTC)
MS = 1709209815250
MIDNIGHT_MS = 1709164800000
SECOND_MS = 1709209815000


@pytest.mark.parametrize("name", ["timestamp", "timestamp_ms"])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pa.timestamp("s"), SECOND_MS),
        (pa.timestamp("ms"), MS),
        (pa.timestamp("us"), MS),
        (pa.timestamp("ns"), MS),
        (pa.timestamp("us", "UTC"), MS),
        (pa.timestamp("ns", "Europe/Berlin"), MS),  # an instant, whatever clock shows it
        (pa.date32(), MIDNIGHT_MS),
        (pa.date64(), MIDNIGHT_MS),
    ],
)
def test_a_type_that_has_a_unit_is_read_in_it_whatever_the_column_is_called(kind, expected, name):
    value = MOMENT.date() if pa.types.is_date(kind) else MOMENT
    if kind == pa.timestamp("s"):
        value = MOMENT.replace(microsecond=0)
    if pa.types.is_timestamp(kind) and kind.tz is None:
        value = value.replace(tzinfo=None)  # type: ignore[call-arg]
    times = times_in_ms(pa.chunked_array([pa.array([value, None], kind)]), name)
    assert times.type == pa.int64()
    assert times.to_pylist() == [expected, None]


@pytest.mark.parametrize(
    ("values", "kind", "name", "expected"),
    [
        ([1_700_000_000, None], pa.int64(), "timestamp", [1_700_000_000_000, None]),
        ([1_700_000_000, None], pa.uint32(), "timestamp", [1_700_000_000_000, None]),
        ([1_700_000_000_123], pa.int64(), "timestamp_ms", [1_700_000_000_123]),
        (
            [1_700_000_000.5, float("nan"), float("inf")],
            pa.float64(),
            "timestamp",
            [1_700_000_000_500, None, None],
        ),
        ([1_700_000_000_123.0, None], pa.float64(), "timestamp_ms", [1_700_000_000_123, None]),
        ([2**63 - 1, -(2**63), 1], pa.int64(), "timestamp", [None, None, 1000]),
        ([2**64 - 1, 1], pa.uint64(), "timestamp_ms", [None, 1]),
        ([1e300, 1.0], pa.float64(), "timestamp_ms", [None, 1]),
        ([None, None], pa.null(), "timestamp", [None, None]),
    ],
)
def test_numbers_are_seconds_or_milliseconds_by_the_columns_name(values, kind, name, expected):
    assert times_in_ms(pa.chunked_array([pa.array(values, kind)]), name).to_pylist() == expected


def test_a_dictionary_is_what_it_encodes():
    encoded = pa.array([7, 7, 8]).dictionary_encode()
    assert times_in_ms(pa.chunked_array([encoded]), "timestamp").to_pylist() == [7000, 7000, 8000]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.bool_(), pa.time64("us"), pa.duration("s"), pa.list_(pa.int64())]
)
def test_what_is_no_time_is_refused_with_its_column_and_type(kind):
    with pytest.raises(ValueError, match=f"column timestamp must hold .*, not {str(kind).split('[')[0]}"):
        times_in_ms(pa.chunked_array([pa.nulls(1, kind)]), "timestamp")


def test_timestamp_ms_goes_before_timestamp():
    assert time_column(["timestamp", "timestamp_ms"]) == "timestamp_ms"
    assert time_column(["timestamp", "x"]) == "timestamp"
    assert time_column(["x"]) is None


def test_years_that_a_wrong_unit_makes_are_told():
    now = int(datetime.combine(date(2024, 6, 1), datetime.min.time(), UTC).timestamp() * 1000)
    assert implausible(np.array([now, now - 10**12]), "timestamp") == ""
    assert implausible(np.array([], np.int64), "timestamp") == ""
    late = implausible(np.array([now * 1000, now]), "timestamp")
    assert late.startswith("1 of 2 events are of a year before 1971 or after 2200 (from 2024 to 56")
    assert "timestamp are read as seconds" in late
    assert "from 1970 to 1970" in implausible(np.array([now // 1000]), "timestamp_ms")
