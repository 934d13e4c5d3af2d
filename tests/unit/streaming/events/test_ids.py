"""One rule for ids in any form."""

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from streaming.events.ids import (
    are_numbers,
    id_of_text,
    ids_of_texts,
    integer_ids,
    problem_of_id,
    read_ids,
    text_of_id,
)
from streaming.events.partitioner import key_hashes_of_texts

INTEGERS = ["0", "7", "-7", "1001", str(2**63 - 1), str(-(2**63)), "9" * 18]
TEXTS = [
    "-0",
    "007",
    "+1",
    "1.0",
    "",
    "-",
    "--1",
    " 1",
    "1 ",
    "１",
    str(2**63),
    str(-(2**63) - 1),
    "9" * 25,
    "sku-1",
]


@pytest.mark.parametrize("text", INTEGERS)
def test_the_plain_decimal_form_of_an_int64_is_that_integer(text):
    assert id_of_text(text) == int(text)
    assert integer_ids([text, int(text)]).tolist() == [int(text)] * 2


@pytest.mark.parametrize("text", TEXTS)
def test_every_other_text_is_hashed(text):
    assert id_of_text(text) == int(np.uint64(xxhash.xxh64_intdigest(text.encode())).astype(np.int64))


def test_columns_of_both_kinds_with_slices_and_no_rows():
    texts = pa.array(INTEGERS + TEXTS)
    assert ids_of_texts(texts.slice(3, 8)).tolist() == [id_of_text(t) for t in (INTEGERS + TEXTS)[3:11]]
    assert ids_of_texts(texts.slice(0, 0)).tolist() == integer_ids([]).tolist() == []


def test_both_forms_of_an_id_have_one_text_and_so_one_partition():
    ids = [1001, "1001", 1001.0, -3, "ann"]
    read = read_ids(ids)
    numbers, hashes = read.ids_N, read.key_hashes()
    assert read.text_column().to_pylist() == [None, "1001", None, None, "ann"]
    assert read_ids([1, 2]).text_column() is None
    assert numbers[:3].tolist() == [1001] * 3
    assert [text_of_id(i) for i in ids] == ["1001", "1001", "1001", "-3", "ann"]
    assert hashes.tolist() == key_hashes_of_texts(pa.array([text_of_id(i) for i in ids])).tolist()


def test_a_text_is_a_number_only_in_plain_decimal_form():
    assert are_numbers(pa.array(INTEGERS + TEXTS)).tolist() == [True] * len(INTEGERS) + [False] * len(TEXTS)


@pytest.mark.parametrize("value", [True, 1.5, float("nan"), float("inf"), 2.0**54, [1], {"a": 1}])
def test_what_is_no_id_is_refused_with_the_value(value):
    assert "item_id must be an integer or a string, got " in problem_of_id("item_id", value)


@pytest.mark.parametrize("value", [1, "a", 3.0, -(2.0**53)])
def test_what_is_one_passes(value):
    assert problem_of_id("item_id", value) == ""
