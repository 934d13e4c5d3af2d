"""Locations as a user writes them: a folder, or the URI of an object store, which is never taken for a path."""

from __future__ import annotations

from pathlib import Path


def split_location(location: str | Path) -> tuple[str, str]:
    """The storage and the name in it of one set's own location; the query of a URI belongs to the storage."""
    place, mark, query = str(location).partition("?") if "://" in str(location) else (str(location), "", "")
    root, _, name = place.rstrip("/").rpartition("/")
    return (root or ("/" if place.startswith("/") else ".")) + mark + query, name


def absolute_location(location: str) -> str:
    """A folder by its whole path, whatever working directory it is read from; a URI, and nothing, as they are."""
    return location if not location or "://" in location else str(Path(location).expanduser().resolve())
