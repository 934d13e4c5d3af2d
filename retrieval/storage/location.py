"""Locations as given by users: a folder, or the URI of an object store, which is never treated as a path."""

from __future__ import annotations

from pathlib import Path


def split_location(location: str | Path) -> tuple[str, str]:
    """Splits the location of one set into its storage and its name; the query of a URI belongs to the storage."""
    place, mark, query = str(location).partition("?") if "://" in str(location) else (str(location), "", "")
    root, _, name = place.rstrip("/").rpartition("/")
    return (root or ("/" if place.startswith("/") else ".")) + mark + query, name


def absolute_location(location: str) -> str:
    """A folder as an absolute path, independent of the working directory; a URI or an empty text unchanged."""
    return location if not location or "://" in location else str(Path(location).expanduser().resolve())
