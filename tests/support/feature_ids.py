"""The feature id of one text."""

import pyarrow as pa

from streaming.events.hashing import feature_ids


def category_id(category: str) -> int:
    """Of an item's category."""
    return int(feature_ids(pa.array([category], pa.string()))[0])


def attribute_id(name: str, value: str) -> int:
    """Of one value of a user attribute; equal values of two attributes differ."""
    return category_id(f"{name}={value}")
