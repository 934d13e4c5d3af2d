"""Plausible mistakes in usable catalogue records, by codes of `streaming.events.faults`."""

from collections.abc import Sequence
from typing import Any

from streaming.events.mapping import FieldMapping
from streaming.events.schema import ATTRIBUTES, TITLE

_LIKE_A_TITLE = ("name", "title", "label", "product_name", "display_name")


def hint_of_item(original: dict[str, Any], mapping: FieldMapping | None) -> str:
    """A code for an item without a title that has a field like one; empty otherwise.

    Args:
        original: the decoded record, with its own names; empty for a tombstone.
        mapping: of items.
    """
    entry = mapping.record(original) if mapping else original
    if not original or entry.get(TITLE):
        return ""
    return "no_title" if any(type(original.get(name)) is str for name in _LIKE_A_TITLE) else ""


def hint_of_user(original: dict[str, Any], names: Sequence[str], mapping: FieldMapping | None) -> str:
    """A code for a user with none of the attributes that the settings name; empty otherwise.

    Args:
        original: as for an item.
        names: `stream.user_attributes`.
        mapping: of users.
    """
    entry = mapping.record(original) if mapping else original
    attributes = entry.get(ATTRIBUTES) or {}
    if not original or not names or any(attributes.get(name) is not None for name in names):
        return ""
    if any(original.get(name) is not None for name in names):
        return "flat_attributes"
    return "unnamed_attributes" if attributes or len(original.keys() - {ATTRIBUTES}) > 1 else ""
