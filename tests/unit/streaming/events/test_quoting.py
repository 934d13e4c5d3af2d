"""Untrusted values in error messages: short, and never the cause of an error."""

import pytest

from streaming.events.quoting import described, header_value, quoted


class _Hostile:
    def __repr__(self):
        raise RuntimeError

    __str__ = __repr__


def _nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        _nested(100_000),
        10**10_000,
        "x" * 1_000_000,
        "\ud800\x1b[31m",
        b"\xff" * 1_000_000,
        {"k" * 1000: "v" * 1000},
        list(range(10_000)),
        _Hostile(),
        [_Hostile()],
    ],
    ids=["deep", "digits", "text", "surrogate", "bytes", "object", "list", "hostile", "hostile inside"],
)
def test_any_value_is_quoted_shortly_in_text_that_can_be_sent(value):
    text = quoted(value)
    assert 0 < len(text) < 600
    assert len(header_value(text, 1024)) <= 1024


def test_plain_values_look_as_repr_shows_them():
    assert [quoted(v) for v in (1.5, "a", True, None, b"\x00", ["x"])] == [
        *("1.5", "'a'", "True", "None", "b'\\x00'", "['x']")
    ]


def test_errors_are_one_short_line():
    assert described(ValueError("a\n b")) == "ValueError: a b"
    assert described(KeyError()) == "KeyError"
    assert described(RuntimeError(_Hostile())) == "RuntimeError"
    assert len(described(ValueError("x" * 10_000))) < 300


def test_a_header_is_cut_between_characters():
    assert header_value("äöü", 5) == "äö".encode()
    assert header_value("a\udcff", 100) == b"a\\udcff"
