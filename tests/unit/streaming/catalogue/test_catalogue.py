"""Catalogue records, updates and look-ups."""

from types import SimpleNamespace

import numpy as np
import orjson
import pytest

from streaming.catalogue import records as catalogue_records
from streaming.catalogue.catalogue import Catalogue, CatalogueUpdate
from streaming.catalogue.records import parse_items, parse_users
from streaming.config import StreamConfig
from streaming.events.schema import ITEM_SCHEMA, USER_SCHEMA
from tests.support.feature_ids import attribute_id, category_id

CONFIG = StreamConfig(max_categories=2, user_attributes=["gender", "age"])


def _record(key, entry, offset=0):
    value = entry if isinstance(entry, bytes | None) else orjson.dumps(entry)
    return SimpleNamespace(topic="items", partition=0, offset=offset, key=str(key).encode(), value=value)


def _raw(key, value):
    return SimpleNamespace(topic="items", partition=0, offset=9, key=key, value=value)


def _update(items=(), users=()):
    item_table, dead_items = parse_items(list(items))
    user_table, dead_users = parse_users(list(users), CONFIG.user_attributes)
    assert dead_items == dead_users == []
    return CatalogueUpdate(item_table, user_table)


def _item(number, title=None, categories=None):
    return _record(number, {"item_id": number, "title": title, "categories": categories})


def _user(number, **attributes):
    return _record(number, {"user_id": number, "attributes": attributes})


def _titles(catalogue):
    return dict(zip(catalogue.item_ids.tolist(), catalogue.titles(catalogue.item_ids), strict=True))


def test_items_keep_their_order_of_arrival_and_the_last_record_of_one_holds():
    catalogue = Catalogue(CONFIG)
    catalogue.apply(_update([_item(5, "old", ["a"]), _item(3, "three"), _item(5, "new", ["b", "c", "d"])]))
    catalogue.add_items(np.array([3, 9, 11]))
    assert catalogue.item_ids.tolist() == [5, 3, 9, 11]
    assert catalogue.titles(np.array([5, 9, 77])) == ["new", "", ""]
    b, c = category_id("b"), category_id("c")
    assert catalogue.categories(np.array([3, 5, 77, 5])).tolist() == [[0, 0], [b, c], [0, 0], [b, c]]


def test_items_are_found_by_place_whatever_was_deleted_and_came_back():
    rng = np.random.default_rng(3)
    catalogue = Catalogue(CONFIG)
    catalogue.add_items(rng.permutation(60))
    for _ in range(40):
        touched = rng.choice(80, 5)  # some twice in one update, some new
        records = [
            _record(item, None) if rng.random() < 0.6 else _item(item, "back") for item in touched.tolist()
        ]
        catalogue.apply(_update(records))
        wanted = catalogue.item_ids
        assert catalogue.item_count == wanted.shape[0]
        np.testing.assert_array_equal(catalogue.items_at(np.arange(wanted.shape[0])), wanted)
        some = rng.choice(wanted.shape[0], 7)
        np.testing.assert_array_equal(catalogue.items_at(some), wanted[some])
        assert not catalogue.is_deleted(wanted).any()
    assert catalogue.is_deleted(np.arange(80)).sum() > 10


def test_a_tombstone_deletes_until_the_next_record():
    catalogue = Catalogue(CONFIG)
    catalogue.apply(_update([_item(1, "one", ["a"]), _item(2, "two")]))
    catalogue.apply(_update([_record(1, None), _record(2, b"")], [_user(4, gender="F"), _record(4, None)]))
    catalogue.add_items(np.array([1]))
    assert catalogue.item_ids.tolist() == []
    assert catalogue.categories(np.array([1])).tolist() == [[0, 0]]
    assert catalogue.user_attributes(np.array([4])).tolist() == [[0, 0]]
    assert catalogue.is_deleted(np.array([1, 2, 3])).tolist() == [True, True, False]
    catalogue.apply(_update([_item(2, "two again")]))
    assert _titles(catalogue) == {2: "two again"}
    assert not catalogue.is_deleted(np.array([2])).any()
    assert catalogue.snapshot().users.num_rows == 0


def test_attributes_stand_in_the_order_of_the_settings_and_unknown_ones_are_zero():
    catalogue = Catalogue(CONFIG)
    catalogue.apply(
        _update(users=[_user(1, age=30, gender="F", other="x"), _user(2, gender=None), _user(-3)])
    )
    known = [attribute_id("gender", "F"), attribute_id("age", "30")]
    found = catalogue.user_attributes(np.array([1, 2, -3, 99]))
    assert found.tolist() == [known, [0, 0], [0, 0], [0, 0]]
    assert found.dtype == np.int64


def test_no_attributes_and_no_users_give_empty_look_ups():
    catalogue = Catalogue(StreamConfig(user_attributes=[], max_categories=0))
    assert catalogue.user_attributes(np.array([1, 2])).shape == (2, 0)
    assert catalogue.categories(np.array([1])).shape == (1, 0)


def test_a_snapshot_through_bytes_makes_an_equal_catalogue_that_stays_equal():
    rng = np.random.default_rng(0)
    catalogue = Catalogue(CONFIG)
    for _ in range(30):
        numbers = rng.integers(0, 5000, 200)
        items = [
            _record(n, None) if n % 7 == 0 else _item(int(n), f"t{n}", [f"c{n % 5}"] * int(n % 4))
            for n in numbers
        ]
        catalogue.apply(_update(items, [_user(int(n), age=int(n % 9)) for n in numbers[:50]]))
        catalogue.add_items(rng.integers(0, 6000, 20))
    copy = Catalogue(CONFIG)
    copy.apply(CatalogueUpdate.from_bytes(catalogue.snapshot().to_bytes()))
    for one in (catalogue, copy):
        one.apply(_update([_item(7, "seven"), _item(6001, "late")]))
    assert copy.snapshot() == catalogue.snapshot()
    assert copy.item_ids.tolist() == catalogue.item_ids.tolist()
    assert len(catalogue.item_ids) > 1024


def test_an_update_of_other_attributes_is_refused():
    with pytest.raises(ValueError, match=r"has 2 attributes, but stream\.user_attributes names 1"):
        Catalogue(StreamConfig(user_attributes=["age"])).apply(_update(users=[_user(1)]))


def test_text_ids_and_their_tombstones_mean_the_same_item():
    catalogue = Catalogue(CONFIG)
    catalogue.apply(_update([_record("sku-1", {"item_id": "sku-1"}), _record("007", {"item_id": "007"})]))
    assert len(catalogue.item_ids) == 2
    catalogue.apply(_update([_record("sku-1", None), _record("007", None)]))
    assert len(catalogue.item_ids) == 0


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (_record(1, b"{"), "not JSON"),
        (_record(1, [1]), "must be a JSON object, not list"),
        (_record(1, {"title": "x"}), "item_id is missing"),
        (_record(1, {"item_id": True}), "item_id must be an integer or a string"),
        (_record(2, {"item_id": 1}), "the key is b'2', but item_id is 1"),
        (_record(1, {"item_id": 1, "title": 5}), "title must be a string"),
        (_record(1, {"item_id": 1, "categories": "a|b"}), "categories must be a list of strings"),
        (_record(1, {"item_id": 1, "categories": [None]}), "categories must be a list of strings"),
        (_record("", None), "a tombstone needs the id as its key"),
        (_raw(b"\xff\xfe", None), "the key of a tombstone must be the id as UTF-8, got b'\\xff\\xfe'"),
        (
            _raw(b"1", b'{"item_id":1,"categories":' + b"[" * 1000 + b"]" * 1000 + b"}"),
            "categories must be a list",
        ),
        (
            _raw(None, b'{"item_id":' + b"[" * 1000 + b"]" * 1000 + b"}"),
            "item_id must be an integer or a string",
        ),
        (_raw(b"x" * 5000, b'{"item_id":1}'), "the key is b'xxx"),
        (_raw(None, b'{"item_id":18446744073709551615}'), "item_id must fit in 64 bits"),
        (_raw(None, b'{"item_id":36893488147419103232}'), "item_id must be an integer or a string, got 3.68"),
        (_raw(None, b'{"item_id":1,"title":"\\ud800"}'), "not JSON"),
    ],
)
def test_an_unusable_item_record_is_a_dead_letter_and_changes_nothing(record, reason):
    table, dead = parse_items([_item(3), record])
    assert table["item_id"].to_pylist() == [3]
    assert reason in dead[0].reason
    assert len(dead[0].reason) < 400


def test_whatever_one_record_raises_costs_that_record_alone(monkeypatch):
    def loads(value, names):
        if b"poison" in value:
            raise RecursionError
        return orjson.loads(value)

    monkeypatch.setattr(catalogue_records, "loads", loads)
    table, dead = parse_items([_item(1), _item(2, "poison"), _item(3)])
    assert table["item_id"].to_pylist() == [1, 3]
    assert dead[0].reason == "cannot be read: RecursionError"


def test_attributes_that_no_setting_names_may_be_anything():
    table, dead = parse_users(
        [_user(1, gender="F", age=None, tags=["a", {"b": None}], premium=True)], ["gender", "age"]
    )
    assert dead == []
    assert table["attributes"].to_pylist() == [[attribute_id("gender", "F"), 0]]


def test_empty_texts_are_missing_ones():
    catalogue = Catalogue(CONFIG)
    catalogue.apply(_update([_item(1, "", ["", "a"])], [_user(1, gender="", age="30")]))
    assert catalogue.titles(np.array([1])) == [""]
    assert catalogue.snapshot().items["title"].to_pylist() == [None]
    assert catalogue.categories(np.array([1])).tolist() == [[category_id("a"), 0]]
    assert catalogue.user_attributes(np.array([1])).tolist() == [[0, attribute_id("age", "30")]]


def test_digits_are_one_item_whether_written_as_a_number_or_as_a_text():
    catalogue = Catalogue(CONFIG)
    as_text = [
        _record("1001", {"item_id": "1001", "title": "text"}),
        _record("7", {"item_id": 7.0, "title": "whole"}),
    ]
    catalogue.apply(_update(as_text))
    assert _titles(catalogue) == {1001: "text", 7: "whole"}
    catalogue.apply(_update([_record("1001", None), _record("7", None)]))
    assert catalogue.item_ids.tolist() == []


@pytest.mark.parametrize("attributes", [["x"], {"age": [1]}, {"age": True}])
def test_an_unusable_user_record_is_a_dead_letter(attributes):
    table, dead = parse_users([_record(1, {"user_id": 1, "attributes": attributes})], ["age"])
    assert table.num_rows == 0
    assert "must be" in dead[0].reason


def test_no_records_make_tables_without_rows():
    assert parse_items([])[0].schema == ITEM_SCHEMA
    assert parse_users([], ["age"])[0].schema == USER_SCHEMA
