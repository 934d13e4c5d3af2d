"""The catalogue, in a checkpoint and in an index version. All ranks have the same, so rank 0 writes it.

| file | holds |
|---|---|
| `catalogue-items.arrow`, `catalogue-users.arrow` | all of it: items in order of arrival, and users |
| `….baseN.arrow` | if much has changed: these records, copied in slices; N counts from 1 |
| `….changes.arrow` | records that are new or have changed; of a deleted user, a tombstone |

Earlier versions wrote all of it into every delta.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.checkpoints.arrays import read_table
from cluster.checkpoints.checkpoint import Checkpoint
from cluster.checkpoints.part import Part, Saved, Slice
from retrieval.versions.store import Version
from streaming.arrays import Int64Array
from streaming.catalogue.catalogue import Catalogue
from streaming.catalogue.records import CatalogueUpdate, last_records
from streaming.events.schema import DELETED, ITEM_ID, USER_ID

PREFIX = "catalogue-"
ITEMS = f"{PREFIX}items.arrow"
USERS = f"{PREFIX}users.arrow"
_RECORDS_AT_ONCE = 1 << 13
_BYTES_OF_RECORD = 64


class _Named(Protocol):
    @property
    def stem(self) -> str: ...


_File = TypeVar("_File", bound=_Named)


class CataloguePart(Part):
    """The catalogue.

    Args:
        catalogue: of the run.
        writes: whether this rank writes it.
    """

    names = (PREFIX,)

    def __init__(self, catalogue: Catalogue, *, writes: bool = True) -> None:
        self._catalogue, self._writes = catalogue, writes

    def forget(self) -> None:
        """See Part."""
        self._catalogue.take_changes()

    def base(self) -> Iterator[tuple[str, Slice]]:
        """See Part."""
        if self._writes:
            items, users = len(self._catalogue.known_ids), len(self._catalogue.known_users)
            for start in range(0, max(1, items), _RECORDS_AT_ONCE):
                yield ITEMS, self._items(np.arange(start, min(start + _RECORDS_AT_ONCE, items)))
            for start in range(0, max(1, users), _RECORDS_AT_ONCE):
                yield USERS, self._users(np.arange(start, min(start + _RECORDS_AT_ONCE, users)))

    def changed_bytes(self) -> int:
        """See Part."""
        return self._catalogue.changed_count * _BYTES_OF_RECORD if self._writes else 0

    def changes_in_slices(self, number: int) -> Iterator[tuple[str, Slice]]:
        """See Part."""
        items, users = self._catalogue.take_changes()
        if self._writes:
            for start in range(0, len(items), _RECORDS_AT_ONCE):
                yield _named(ITEMS, f"base{number}"), self._items(items[start : start + _RECORDS_AT_ONCE])
            for start in range(0, len(users), _RECORDS_AT_ONCE):
                some = users[start : start + _RECORDS_AT_ONCE]
                yield _named(USERS, f"base{number}"), self._users(some, with_deleted=True)

    def changes(self) -> dict[str, pa.Table]:
        """See Part."""
        items, users = self._catalogue.take_changes()
        if not self._writes:
            return {}
        return {
            _named(ITEMS, "changes"): self._items(items)(),
            _named(USERS, "changes"): self._users(users, with_deleted=True)(),
        }

    def restore(self, saved: Saved) -> None:
        """See Part."""
        found = read_catalogue(saved.source)
        if saved.attributes.changed:
            found = replace(found, users=saved.attributes.of_users(found.users))
        self._catalogue.apply(found)

    def _items(self, places: Int64Array) -> partial[pa.Table]:
        """A function that copies some items; their ids are copied now."""
        return partial(self._catalogue.item_records, places, self._catalogue.known_ids[places])

    def _users(self, places: Int64Array, *, with_deleted: bool = False) -> partial[pa.Table]:
        copy = partial(self._catalogue.user_records, places, self._catalogue.known_users[places])
        return copy if with_deleted else partial(_living, copy)


def read_catalogue(source: Version | Checkpoint) -> CatalogueUpdate:
    """The catalogue of an index version or a checkpoint's chain, as an update of an empty one."""
    saved = Saved(source)
    items, users = (
        last_records(pa.concat_tables(map(read_table, files_of(saved.files(stem(file)), file))), key)
        for file, key in ((ITEMS, ITEM_ID), (USERS, USER_ID))
    )
    return CatalogueUpdate(items, without_deleted(users))


def merged_catalogue(checkpoint: Checkpoint) -> dict[str, pa.Table]:
    """The same of a checkpoint by the names of the whole files, with users by id."""
    found = read_catalogue(checkpoint)
    return {ITEMS: found.items, USERS: found.users.sort_by(USER_ID)}


def files_of(files: Sequence[_File], whole: str) -> Sequence[_File]:
    """Of the files of a chain, the last one that holds everything, and those after it, whose records replace its own.

    Args:
        files: of items or of users, the full checkpoint's first.
        whole: ITEMS or USERS.
    """
    begin = max(n for n, file in enumerate(files) if file.stem == stem(whole))
    return files[begin:]


def without_deleted(users: pa.Table) -> pa.Table:
    """The users who are not deleted."""
    return users.filter(pc.invert(users[DELETED])) if pc.any(users[DELETED]).as_py() else users


def stem(file: str) -> str:
    """What the names of all files of items, or of users, begin with."""
    return file.removesuffix(".arrow")


def _named(file: str, kind: str) -> str:
    return f"{stem(file)}.{kind}.arrow"


def _living(copy: partial[pa.Table]) -> pa.Table:
    return without_deleted(copy())
