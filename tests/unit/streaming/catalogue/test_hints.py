"""Plausible mistakes in catalogue records are counted by code, and nothing else is."""

from collections import Counter
from types import SimpleNamespace

import orjson
import pytest

from streaming.catalogue.records import parse_items, parse_users
from streaming.config import StreamConfig
from streaming.events.mapping import FieldMapping

NAMES = ["gender", "age"]


def _record(value):
    data = orjson.dumps(value) if value is not None else None
    return SimpleNamespace(topic="c", partition=0, offset=0, key=b"1", value=data)


@pytest.mark.parametrize(
    ("user", "hint"),
    [
        ({"user_id": 1, "attributes": {"gender": "F"}}, None),
        ({"user_id": 1, "attributes": {}}, None),
        ({"user_id": 1}, None),
        ({"user_id": 1, "gender": "F"}, "flat_attributes"),
        ({"user_id": 1, "attributes": {"sex": "F"}}, "unnamed_attributes"),
        ({"user_id": 1, "country": "FR"}, "unnamed_attributes"),
        (None, None),
    ],
)
def test_hints_of_users(user, hint):
    hints = Counter()
    parse_users([_record(user)], NAMES, hints=hints)
    assert hints == ({hint: 1} if hint else {})
    mapping = FieldMapping.of_users(StreamConfig(user_attributes=NAMES, user_fields=["attributes=."]))
    hints.clear()
    parse_users([_record(user)], NAMES, mapping, hints=hints)
    assert hints["flat_attributes"] == 0


@pytest.mark.parametrize(
    ("item", "hint"),
    [
        ({"item_id": 1, "title": "Boots", "name": "x"}, None),
        ({"item_id": 1, "categories": ["a"]}, None),
        ({"item_id": 1, "name": "Boots"}, "no_title"),
        ({"item_id": 1, "title": "", "product_name": "Boots"}, "no_title"),
        ({"item_id": 1, "name": 5}, None),
    ],
)
def test_hints_of_items(item, hint):
    hints = Counter()
    parse_items([_record(item)], hints=hints)
    assert hints == ({hint: 1} if hint else {})
    mapping = FieldMapping.of_items(StreamConfig(item_fields=["title=name"]))
    hints.clear()
    parse_items([_record({"item_id": 1, "name": "Boots"})], mapping, hints=hints)
    assert not hints
