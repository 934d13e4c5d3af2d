"""One way to declare a setting, and to refuse a value that it does not allow."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import pytest

from model.setting import require_declared, setting

ROOT = Path(__file__).parents[3]


class RefusedError(ValueError):
    """Of these tests."""


@dataclass
class Example:
    """Every kind of bound."""

    counted: int = setting(1, "At least one.", at_least=1)
    amount: float = setting(0.0, "Not negative.", at_least=0)
    rate: float = setting(0.1, "Positive.", above=0)
    share: float = setting(0.5, "Closed.", at_least=0, at_most=1)
    ratio: float = setting(0.5, "Half open.", at_least=0, below=1)
    fraction: float = setting(0.5, "Half open.", above=0, at_most=1)
    recall: float = setting(0.5, "From above only.", at_most=1)
    kind: Literal["a", "b", "c"] = setting("a", "A choice.")
    mechanism: Literal["", "b"] = setting("", "A choice.")
    names: list[str] = setting([], "Anything.")


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("counted", 0, "be at least 1"),
        ("amount", -0.5, "not be negative"),
        ("rate", 0.0, "be positive"),
        ("share", 1.5, "be in [0, 1]"),
        ("share", -0.5, "be in [0, 1]"),
        ("ratio", 1.0, "be in [0, 1)"),
        ("fraction", 0.0, "be in (0, 1]"),
        ("recall", 1.5, "be at most 1"),
        ("recall", float("nan"), "be at most 1"),
        ("kind", "d", "be a, b or c"),
        ("mechanism", "d", "be empty or b"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_setting_rule_and_value(name, value, rule):
    with pytest.raises(RefusedError) as refused:
        require_declared("section", replace(Example(), **{name: value}), RefusedError)
    assert str(refused.value) == f"section.{name} must {rule}, got {value!r}"


def test_a_setting_without_a_section_is_named_alone():
    with pytest.raises(ValueError, match=r"^counted must be at least 1, got 0$"):
        require_declared("", Example(counted=0))


@pytest.mark.parametrize(
    "allowed",
    [{}, {"counted": 1}, {"share": 0.0}, {"share": 1.0}, {"ratio": 0.0}, {"fraction": 1.0}, {"kind": "c"}],
)
def test_values_up_to_the_bounds_are_allowed(allowed):
    require_declared("section", Example(**allowed))


def test_a_list_is_each_objects_own():
    one, other = Example(), Example()
    one.names.append("x")
    assert other.names == []


def test_a_bound_of_another_name_is_an_error_of_the_declaration():
    with pytest.raises(AssertionError, match="atleast"):
        setting(1, "Mistyped.", atleast=1)


def test_help_and_bounds_are_in_the_metadata():
    declared = {item.name: dict(item.metadata) for item in fields(Example)}
    assert declared["ratio"] == {"help": "Half open.", "at_least": 0, "below": 1}


@pytest.mark.parametrize("package", ["retrieval", "streaming"])
def test_the_copies_for_packages_that_may_not_import_one_another_are_equal(package):
    assert (ROOT / package / "setting.py").read_text() == (ROOT / "model" / "setting.py").read_text()
