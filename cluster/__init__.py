"""The distributed system: Ray Train workers, sharded embedding rows, checkpoints, publishing.

Composes streaming, model and retrieval, none of which knows the others.
"""

from pathlib import Path

from cluster.numba_cache import ensure_cache

ensure_cache(Path(__file__).parent)
