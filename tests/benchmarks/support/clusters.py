"""Item vectors like those of trained towers: in clusters, on the unit sphere or with uneven norms.

Shape letters: N items, Q queries, D columns.
"""

from dataclasses import dataclass

import numpy as np

from retrieval.arrays import Float32Array

_SLICE = 100_000


@dataclass(frozen=True)
class Clusters:
    """About 60 items around each centre.

    Attributes:
        items: N.
        dim: D.
        noise: standard deviation of a column of an item around its centre, in those of a centre around 0.
        norms: sigma of the log-normal norms of items; 0 leaves all of them 1.
    """

    items: int
    dim: int
    noise: float = 0.6
    norms: float = 0.0

    def draw(self, queries: int) -> tuple[Float32Array, Float32Array]:
        """Items float32 (N, D), and unit queries float32 (Q, D), each near an item; always the same."""
        rng = np.random.default_rng(0)
        centres = rng.standard_normal((max(3, self.items // 60), self.dim), dtype=np.float32)
        items = np.empty((self.items, self.dim), np.float32)
        for start in range(0, self.items, _SLICE):
            some = items[start : start + _SLICE]
            some[:] = rng.standard_normal(some.shape, dtype=np.float32) * np.float32(self.noise)
            some += centres[rng.integers(0, centres.shape[0], some.shape[0])]
            some /= np.linalg.norm(some, axis=1, keepdims=True)
        near = items[rng.integers(0, self.items, queries)]
        near += 0.1 * rng.standard_normal(near.shape, dtype=np.float32)
        near /= np.linalg.norm(near, axis=1, keepdims=True)
        if self.norms:
            items *= rng.lognormal(0, self.norms, (self.items, 1)).astype(np.float32)
        return items, near
