"""The catalogue in a checkpoint and in an index version: two Arrow files."""

from __future__ import annotations

from pathlib import Path

from cluster.checkpoint import read_table, write_table
from retrieval.durable_files import FileEntry
from streaming.catalogue import Catalogue
from streaming.catalogue_records import CatalogueUpdate

ITEMS = "catalogue-items.arrow"
USERS = "catalogue-users.arrow"


def save_catalogue(directory: Path, catalogue: Catalogue) -> list[FileEntry]:
    """Write items, in the order in which they became known, and users."""
    everything = catalogue.snapshot()
    return [
        write_table(directory / ITEMS, everything.items),
        write_table(directory / USERS, everything.users),
    ]


def read_catalogue(directory: Path) -> CatalogueUpdate:
    """What `save_catalogue` wrote, to be applied to an empty catalogue."""
    return CatalogueUpdate(read_table(directory / ITEMS), read_table(directory / USERS))
