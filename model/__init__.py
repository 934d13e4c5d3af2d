"""CL-EPIDTN and its relatives on plain tensors; knows no ranks, streams, indexes or settings files."""

from pathlib import Path

from compiled.cache import ensure_cache

ensure_cache(Path(__file__).parent)
