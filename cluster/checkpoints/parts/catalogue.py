"""The catalogue in a checkpoint and in an index version: two Arrow files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from cluster.checkpoints.arrays import read_table, write_table
from cluster.checkpoints.checkpoint import Checkpoint
from retrieval.storage.durable import FileEntry
from retrieval.versions.store import Version
from streaming.catalogue.catalogue import Catalogue
from streaming.catalogue.records import CatalogueUpdate

ITEMS = "catalogue-items.arrow"
USERS = "catalogue-users.arrow"


def catalogue_tables(catalogue: Catalogue) -> dict[str, pa.Table]:
    """Items, in the order in which they became known, and users, by file name."""
    everything = catalogue.snapshot()
    return {ITEMS: everything.items, USERS: everything.users}


def save_catalogue(directory: Path, catalogue: Catalogue) -> list[FileEntry]:
    """Write them into a folder."""
    return [write_table(directory / name, table) for name, table in catalogue_tables(catalogue).items()]


def read_catalogue(source: Version | Checkpoint) -> CatalogueUpdate:
    """What an index version or a checkpoint holds, to be applied to an empty catalogue."""
    return CatalogueUpdate(read_table(source.file(ITEMS)), read_table(source.file(USERS)))
