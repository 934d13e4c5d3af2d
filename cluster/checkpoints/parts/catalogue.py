"""The catalogue in a checkpoint and in an index version: two Arrow files."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from cluster.checkpoints.arrays import read_table
from cluster.checkpoints.checkpoint import Checkpoint
from cluster.checkpoints.part import Copies, Part, Saved
from retrieval.versions.store import Version
from streaming.catalogue.catalogue import Catalogue
from streaming.catalogue.records import CatalogueUpdate

ITEMS = "catalogue-items.arrow"
USERS = "catalogue-users.arrow"


class CataloguePart(Part):
    """The catalogue. All ranks have the same, so one writes."""

    names = ("catalogue-",)

    def __init__(self, catalogue: Catalogue, *, writes: bool = True) -> None:
        self._catalogue, self._writes = catalogue, writes

    def copies(self) -> Copies:
        """See Part."""
        if not self._writes:
            return Copies()
        view = self._catalogue.view()
        return Copies({ITEMS: view.items, USERS: view.users})

    def restore(self, saved: Saved) -> None:
        """See Part."""
        found = read_catalogue(saved.source)
        if saved.attributes.changed:
            found = replace(found, users=saved.attributes.of_users(found.users))
        self._catalogue.apply(found)


def catalogue_tables(catalogue: Catalogue) -> dict[str, pa.Table]:
    """Items, in the order in which they became known, and users, by file name."""
    everything = catalogue.snapshot()
    return {ITEMS: everything.items, USERS: everything.users}


def read_catalogue(source: Version | Checkpoint) -> CatalogueUpdate:
    """The catalogue of an index version or a checkpoint, as an update of an empty one."""
    return CatalogueUpdate(read_table(source.file(ITEMS)), read_table(source.file(USERS)))
