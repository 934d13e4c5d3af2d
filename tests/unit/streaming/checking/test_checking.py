"""What a check says of plausible mistakes, and when it says that training would work."""

import zlib
from dataclasses import replace
from types import SimpleNamespace

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streaming.checking.check import Checked, check_files
from streaming.checking.fields import guess, table_of, unit_of
from streaming.checking.judging import problems_of
from streaming.checking.profile import catalogue_profile, events_profile
from streaming.checking.sample import Sample
from streaming.codecs.codec import ARROW, ENCODING_HEADER, encode_events
from streaming.config import StreamConfig
from streaming.events.partitioner import partition_of_texts

AT_MS = 1_769_839_200_000
PARTITIONS = 4


def _home(key):
    return int(partition_of_texts(pa.array([key]), PARTITIONS)[0])


def _record(value, offset, key=None, headers=()):
    data = value if isinstance(value, bytes) else orjson.dumps(value)
    return SimpleNamespace(
        topic="t", partition=0, offset=offset, timestamp=AT_MS, key=key, value=data, headers=headers
    )


def _event(n, **changes):
    return {"user_id": f"u{n % 7}", "item_id": n % 9, "timestamp_ms": AT_MS - n, **changes}


def _sample(events, home=None):
    records = {p: [] for p in range(PARTITIONS)}
    for n, event in enumerate(events):
        user = str(event.get("user_id") or event.get("visitor", {}).get("id", ""))
        partition = _home(user) if home is None else home(user)
        records[partition].append(_record(event, n, user.encode()))
    return Sample("clicks", PARTITIONS, records)


def _checked(config, sample):
    profiles = [events_profile(config, sample)]
    return Checked(profiles, problems_of(config, profiles))


def test_good_events_would_train_and_their_figures_are_right():
    events = [_event(n, action="view" if n % 2 else "skip") for n in range(60)]
    checked = _checked(StreamConfig(negative_actions=["skip"]), _sample(events))
    (profile,) = checked.profiles
    assert checked.trains
    assert checked.problems == []
    assert (profile.rows, profile.usable, profile.faults) == (60, 60, {})
    facts = profile.facts
    assert (facts["users"], facts["items"], facts["positive"], facts["negative"]) == (7, 9, 30, 30)
    assert facts["actions"] == {"view": 30, "skip": 30}
    assert (facts["first_ms"], facts["last_ms"]) == (AT_MS - 59, AT_MS)
    assert facts["keys"]["as_murmur2"] == facts["keys"]["with_key"] == 60
    assert {line["field"]: line["read_as"] for line in profile.fields}["user_id"] == "user_id"
    assert profile.formats == {"json": 60}


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"timestamp_ms": AT_MS // 1000}, "stream.timestamp_unit=s"),
        ({"timestamp_ms": AT_MS * 1000}, "stream.timestamp_unit=us"),
        ({"timestamp_ms": "2026-01-31T06:00:00Z"}, "stream.timestamp_unit=iso8601"),
        ({"timestamp_ms": None, "occurred_at": AT_MS}, "stream.fields=[timestamp_ms=occurred_at]"),
        ({"item_id": None, "product": {"sku": "a"}}, "stream.fields=[item_id=product.sku]"),
    ],
)
def test_a_plausible_mistake_stops_and_names_the_setting_that_corrects_it(change, remedy):
    sample = _sample([_event(n, **change) for n in range(40)])
    checked = _checked(StreamConfig(), sample)
    assert not checked.trains
    assert remedy in [problem.change for problem in checked.problems if problem.stops]
    name, value = remedy.split("=", 1)
    value = value.strip("[]") if name.endswith("fields") else value
    setting = {"fields": [value]} if name.endswith("fields") else {"timestamp_unit": value}
    assert _checked(StreamConfig(**setting), sample).trains


def test_events_of_another_partitioner_stop_and_it_is_named():
    events = [_event(n) for n in range(60)]
    crc = _sample(events, lambda user: zlib.crc32(user.encode()) % PARTITIONS)
    checked = _checked(StreamConfig(), crc)
    assert not checked.trains
    (problem,) = (p for p in checked.problems if "wrong_partition" in p.what)
    assert "set its partitioner=murmur2_random" in problem.change
    keyless = _sample(events, lambda user: 0)
    for record in keyless.records[0]:
        record.key = None
    (problem,) = (p for p in _checked(StreamConfig(), keyless).problems if "wrong_partition" in p.what)
    assert problem.change == "60 messages have no key: key them by the user id"
    other = Sample("clicks", PARTITIONS, {p: [] for p in range(PARTITIONS)})
    for n, event in enumerate(events):
        other.records[_home(f"order-{n}")].append(_record(event, n, f"order-{n}".encode()))
    (problem,) = (p for p in _checked(StreamConfig(), other).problems if "wrong_partition" in p.what)
    assert problem.change == "messages have another key than the user id: key them by the user id"


def test_nothing_positive_nothing_usable_and_nothing_at_all_stop():
    sample = _sample([_event(n, action="look") for n in range(20)])
    (problem,) = _checked(StreamConfig(positive_actions=["buy"]), sample).problems
    assert (problem.change, problem.stops) == ("stream.positive_actions", True)
    broken = Sample("clicks", 1, {0: [_record(b"{broken", 0)]})
    checked = _checked(StreamConfig(), broken)
    assert not checked.trains
    assert any("not_json" in problem.what for problem in checked.problems)
    empty = _checked(StreamConfig(), Sample("clicks", 1, {0: []}))
    assert [problem.what for problem in empty.problems] == ["it is empty"]
    assert not empty.trains


def test_few_dead_letters_are_noted_and_do_not_stop():
    events = [_event(n) for n in range(60)]
    events[5]["item_id"] = None
    checked = _checked(StreamConfig(), _sample(events))
    assert checked.trains
    (note,) = checked.problems
    assert note.what.startswith("1 of 60 (1.7%): missing_field")
    assert "item_id is missing" in note.what


def test_arrow_messages_are_counted_by_rows_and_their_fields_are_shown():
    rows = pa.RecordBatch.from_pylist([_event(n, user_id=7) for n in range(30)])
    record = _record(encode_events(rows), 0, headers=[(ENCODING_HEADER, ARROW)])
    (profile,) = _checked(StreamConfig(), Sample("clicks", 1, {0: [record]})).profiles
    assert (profile.messages, profile.rows, profile.formats) == (1, 30, {"arrow": 1})
    assert [line["field"] for line in profile.fields] == ["user_id", "item_id", "timestamp_ms"]


@pytest.mark.parametrize(
    ("kind", "record", "code", "remedy"),
    [
        ("users", {"user_id": 1, "gender": "F"}, "flat_attributes", "stream.user_fields=[attributes=.]"),
        ("users", {"user_id": 1, "attributes": {"sex": "F"}}, "unnamed_attributes", "stream.user_attributes"),
        ("items", {"item_id": 1, "name": "Boots"}, "no_title", "stream.item_fields=[title=name]"),
        ("items", {"name": "Boots"}, "missing_field", "stream.item_fields"),
    ],
)
def test_mistakes_of_the_catalogue_are_noted(kind, record, code, remedy):
    config = StreamConfig(user_attributes=["gender"])
    profile = catalogue_profile(config, Sample("c", 1, {0: [_record(record, 0)]}), kind)
    assert profile.faults == {code: 1}
    problems = problems_of(config, [profile])
    assert not any(problem.stops for problem in problems)
    assert any(remedy in problem.change for problem in problems)


def test_files_are_checked_with_the_catalogue_beside_them(tmp_path):
    events = pa.Table.from_pylist([_event(n) for n in range(50)])
    pq.write_table(events, tmp_path / "events.parquet")
    pq.write_table(pa.table({"item_id": [1, 2], "title": ["a", "b"]}), tmp_path / "items.parquet")
    config = StreamConfig(parquet=str(tmp_path))
    checked = check_files(config, 1000)
    assert checked.trains, checked.problems
    assert [(p.kind, p.rows, p.usable) for p in checked.profiles] == [("events", 50, 50), ("items", 2, 2)]
    seconds = events.set_column(2, "timestamp_ms", pa.array([AT_MS // 1000] * 50))
    pq.write_table(seconds, tmp_path / "events.parquet")
    wrong = check_files(config, 1000)
    assert "stream.timestamp_unit=s" in [problem.change for problem in wrong.problems]
    assert not wrong.trains
    assert check_files(replace(config, timestamp_unit="s"), 1000).trains


def test_fields_have_shares_examples_and_readers_and_guesses_prefer_what_is_always_there():
    objects = [{"visitor": {"id": 5}, "user_agent": "x"}, {"visitor": {"id": 6}}]
    lines = table_of(objects, {"user_id": ("visitor", "id")})
    assert lines[0] == {"field": "visitor.id", "share": 1.0, "example": "5", "read_as": "user_id"}
    assert lines[1]["share"] == 0.5
    assert guess("user_id", objects) == "visitor.id"
    assert guess("item_id", objects) == ""
    assert unit_of([AT_MS, AT_MS, 5]) == "ms"
    assert unit_of([AT_MS * 1_000_000]) == "ns"
    assert unit_of([None, True]) == ""
