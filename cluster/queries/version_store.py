"""The index versions of a run, at the location in its settings."""

from __future__ import annotations

from cluster.config import FreshetConfig
from retrieval.storage.cache import FileCache
from retrieval.versions.store import VersionStore


def version_store(config: FreshetConfig) -> VersionStore:
    """The store at `train.index_path`, by default in `storage_path`, with a cache of `index.cache_gib`."""
    return VersionStore(config.index_location, FileCache(most_bytes=int(config.index.cache_gib * 2**30)))
