"""The item index: Faiss IVF versions that are built beside the live one, gated by recall, promoted by a pointer.

Knows vectors and ids; knows nothing of models, streams or ranks. What a program needs to search an index is exported
here, and imported on first use: settings and storage do not need Faiss.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.indexes.ivf import IndexInputError
    from retrieval.storage.base import StorageLocationError
    from retrieval.storage.cache import FileCache
    from retrieval.versions.item_vectors import read_item_vectors
    from retrieval.versions.searcher import LoadedVersion, Searcher
    from retrieval.versions.store import Version, VersionCorrupt, VersionError, VersionStore

__all__ = [
    "FileCache",
    "IndexInputError",
    "LoadedVersion",
    "Searcher",
    "StorageLocationError",
    "Version",
    "VersionCorrupt",
    "VersionError",
    "VersionStore",
    "read_item_vectors",
]

_MODULES = {
    "FileCache": "storage.cache",
    "IndexInputError": "indexes.ivf",
    "LoadedVersion": "versions.searcher",
    "Searcher": "versions.searcher",
    "StorageLocationError": "storage.base",
    "Version": "versions.store",
    "VersionCorrupt": "versions.store",
    "VersionError": "versions.store",
    "VersionStore": "versions.store",
    "read_item_vectors": "versions.item_vectors",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
