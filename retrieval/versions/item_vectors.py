"""The item vectors of a version as Arrow, for another vector store."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa

from retrieval.storage.cache import FileCache
from retrieval.versions.item_texts import ITEM_TEXTS, ItemTexts
from retrieval.versions.store import VersionCorrupt, VersionError, VersionStore

_ITEMS = re.compile(r"items(-\d+)?\.arrow")
"""One file, or one per shard."""


def read_item_vectors(
    location: str | Path, name: str | None = None, *, cache: FileCache | None = None
) -> pa.Table:
    """The item vectors of a version, memory-mapped: rows are read from disk when they are used.

    Args:
        location: of the versions, a folder or a URI such as `s3://bucket/prefix`.
        name: of the version, such as `v00000007`; by default the live one.
        cache: for copies of files in an object store; by default the user's.
    Returns:
        A table with one row per item, in no particular order: `item_id` int64, `vector` a fixed-size list of float32,
        and `item_text`, the id as it was put in if it is a text, else null.
        `schema.metadata[b"version"]` is the version's name.
    Raises:
        VersionError: no version is live, or there is none of this name.
        VersionCorrupt: a file of item vectors or texts is missing or does not match its checksum.
    """
    store = VersionStore(location, cache)
    name = name or store.live_name()
    if name is None:
        raise VersionError(f"no index version is live in {store.where}")
    files = [file for file in store.open(name).files("items") if _ITEMS.fullmatch(file)]
    if not files:
        raise VersionCorrupt(f"index version {name} is damaged: its manifest lists no items.arrow")
    version = store.verify(name, [*files, *store.open(name).files(ITEM_TEXTS)])
    tables = []
    for file in files:
        with pa.memory_map(str(version.file(file))) as source:
            tables.append(pa.ipc.open_file(source).read_all())
    table = pa.concat_tables(tables)
    texts = ItemTexts(version).of(table["item_id"].to_numpy())
    return table.append_column("item_text", texts).replace_schema_metadata({"version": name})
