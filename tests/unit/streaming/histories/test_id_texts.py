"""Texts of text ids: given back, told apart when their hashes are equal, forgotten, and saved."""

from types import SimpleNamespace

import numpy as np
import orjson
import pyarrow as pa
import pytest

from streaming.catalogue.records import parse_items, parse_users
from streaming.codecs.codec import ARROW, ENCODING_HEADER, decode_messages, encode_events
from streaming.events.ids import id_of_text, ids_of_texts
from streaming.events.validation import Place
from streaming.histories.id_texts import SCHEMA, IdTexts, KnownTexts
from tests.support.hash_clash import two_texts_with_one_hash

FIRST, SECOND = two_texts_with_one_hash()


def _noted(texts, names, numbers=()):
    ids = np.concatenate([ids_of_texts(pa.array(names, pa.string())), np.array(numbers, np.int64)])
    return texts.clashes(ids, np.arange(len(names)), pa.array(names, pa.string()))


def _ids(*names):
    return ids_of_texts(pa.array(names, pa.string()))


def test_texts_come_back_and_numbers_need_no_entry():
    texts = IdTexts()
    assert _noted(texts, ["sku-1", "42", "größe", "sku-1"], [7]) is None
    assert texts.as_given(_ids("größe", "42", "sku-1", "never")) == [
        "größe",
        42,
        "sku-1",
        id_of_text("never"),
    ]
    assert len(texts) == 2


def test_many_texts_survive_growth_and_come_back_in_any_order():
    texts, names = IdTexts(), [f"item/{n}/{'x' * (n % 40)}" for n in range(5000)]
    for start in range(0, 5000, 700):
        assert _noted(texts, names[start : start + 700]) is None
    order = np.random.default_rng(0).permutation(5000)
    assert texts.texts(_ids(*names)[order]) == [names[n] for n in order]
    tables = list(texts.tables())
    assert pa.concat_tables(tables).schema == SCHEMA
    assert (
        dict(zip(*pa.concat_tables(tables).to_pydict().values(), strict=True))[id_of_text(names[9])]
        == names[9]
    )


def test_two_texts_with_one_hash_are_told_apart_in_one_call_or_two():
    assert id_of_text(FIRST) == id_of_text(SECOND)
    texts = IdTexts()
    assert _noted(texts, [FIRST, "x", SECOND, FIRST]).tolist() == [False, False, True, False]
    assert _noted(texts, [SECOND]).tolist() == [True]
    assert texts.texts(_ids(SECOND)) == [FIRST]
    assert texts.differs(_ids(SECOND, FIRST), pa.array([SECOND, FIRST])).tolist() == [True, False]


def test_a_number_that_is_the_hash_of_a_known_text_is_not_that_id():
    texts = IdTexts()
    assert _noted(texts, [], [id_of_text("sku-1")]) is None
    _noted(texts, ["sku-1"])
    assert _noted(texts, ["sku-1"], [5, id_of_text("sku-1")]).tolist() == [False, False, True]


def test_a_forgotten_text_is_nowhere_and_can_come_back():
    texts = IdTexts()
    _noted(texts, ["gone", *(f"{'y' * 99}{n}" for n in range(400))])
    texts.forget(_ids(*(f"{'y' * 99}{n}" for n in range(400)), "gone"))
    assert texts.as_given(_ids("gone")) == [id_of_text("gone")]
    assert pa.concat_tables([SCHEMA.empty_table(), *texts.tables()]).num_rows == 0
    assert _noted(texts, ["gone"]) is None
    assert texts.changes()["text"].to_pylist() == ["gone"]
    assert texts.texts(_ids("gone")) == ["gone"]


def test_changes_are_what_is_new_and_foreign_entries_are_not_saved_again():
    saved = IdTexts()
    _noted(saved, ["a1", "b1"])
    assert sorted(saved.changes()["text"].to_pylist()) == ["a1", "b1"]
    assert saved.changes().num_rows == 0
    restored = IdTexts()
    for table in saved.tables():
        restored.load(table, foreign=True)
    _noted(restored, ["c1", "a1"])
    assert restored.changes()["text"].to_pylist() == ["c1"]
    assert [text for table in restored.tables() for text in table["text"].to_pylist()] == ["c1"]
    assert _noted(restored, ["a1"]) is None


def test_ranks_that_read_two_texts_of_one_hash_see_it():
    mine, theirs = IdTexts(), IdTexts()
    _noted(mine, [FIRST, "x"])
    _noted(theirs, [SECOND, "x"])
    assert mine.clashes_with(theirs.unchecked()) == [(id_of_text(FIRST), FIRST, SECOND)]
    assert theirs.unchecked().num_rows == 0
    assert theirs.clashes_with(SCHEMA.empty_table()) == []


def _place(texts):
    return Place("t", 0, 1, texts=texts)


def _json(user, item, offset):
    value = orjson.dumps({"user_id": user, "item_id": item, "timestamp_ms": 5})
    return SimpleNamespace(offset=offset, timestamp=5, value=value, headers=None)


def _arrow(users, items):
    value = encode_events(
        pa.RecordBatch.from_pydict({"user_id": users, "item_id": items, "timestamp_ms": [5] * len(users)})
    )
    return SimpleNamespace(offset=0, timestamp=5, value=value, headers=[(ENCODING_HEADER, ARROW)])


def test_the_second_of_two_texts_with_one_hash_is_a_dead_letter_in_json():
    texts = KnownTexts()
    pairs = [(FIRST, 1), (2, FIRST), (SECOND, 1), (3, SECOND), (FIRST, "b"), (id_of_text(FIRST), 9)]
    decoded = decode_messages([_json(*pair, n) for n, pair in enumerate(pairs)], _place(texts))
    assert decoded.rows["offset"].to_pylist() == [0, 1, 4]
    assert [letter.offset for letter in decoded.dead] == [2, 3, 5]
    user, item, number = (letter.reason for letter in decoded.dead)
    assert user.startswith("user_id '")
    assert "has the same 64-bit hash as" in user
    assert item.startswith("item_id '")
    assert number.startswith(f"user_id {id_of_text(FIRST)} is also the 64-bit hash of the text")
    assert texts.users.as_given(decoded.rows["user_id"].to_numpy()) == [FIRST, 2, FIRST]


def test_the_same_in_arrow_and_unusable_rows_make_no_text_known():
    texts = KnownTexts()
    batch = _arrow([FIRST, SECOND, None, "y", ""], ["a", "b", "c", None, "d"])
    decoded = decode_messages([batch], _place(texts))
    assert [letter.row for letter in decoded.dead] == [1, 2, 3, 4]
    assert "has the same 64-bit hash" in decoded.dead[0].reason
    assert texts.items.texts(_ids("a", "b", "c")) == ["a", None, None]
    assert texts.users.texts(_ids("y")) == [None]
    numbers = decode_messages([_arrow([1, 2], [3, 4])], _place(texts))
    assert numbers.rows.num_rows == 2


def _record(key, value, offset=0):
    data = orjson.dumps(value) if value is not None else None
    return SimpleNamespace(topic="c", partition=0, offset=offset, key=key.encode(), value=data)


@pytest.mark.parametrize("tombstone", [False, True])
def test_catalogue_records_and_tombstones_of_another_text_change_nothing(tombstone):
    texts = KnownTexts()
    second = _record(SECOND, None if tombstone else {"item_id": SECOND, "title": "other"}, 1)
    records = [_record(FIRST, {"item_id": FIRST, "title": "one"}), second, _record("7", None, 2)]
    items, (dead,) = parse_items(records, None, texts)
    assert items["title"].to_pylist() == ["one", None]
    assert dead.offset == 1
    assert "has the same 64-bit hash as" in dead.reason
    users, _ = parse_users([_record("ann", {"user_id": "ann"}), _record("bob", None)], [], None, texts)
    assert users.num_rows == 2
    assert texts.users.texts(_ids("ann", "bob")) == ["ann", None]
