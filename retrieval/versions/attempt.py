"""Each rank's files of an attempt: its items, its share of the sample, its shard.

The attempt's folder is visible to all ranks. Hidden files in it are not part of the version.

Shape letters: N items, S items of a slice, M items of the sample, D columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from retrieval.arrays import Float32Array, Int64Array, UInt8Array
from retrieval.config import IndexConfig
from retrieval.indexes.coarse import assign_lists
from retrieval.indexes.gpu_index import builder_for
from retrieval.indexes.ivf import IvfIndex, finite_rows
from retrieval.indexes.parts import Part, read_ids, read_parts, refuse_twins, write_part, write_slices
from retrieval.indexes.sampling import in_sample
from retrieval.versions.shards import ShardFiles


@dataclass
class ItemsOfRank:
    """The items that one rank has written.

    Attributes:
        items: their number.
        width: D, 0 if nothing was written.
        finite, nonzero: number of vectors with only finite numbers, and number whose length is not zero.
        bad_ids: ids of a few vectors that are not finite.
    """

    items: int = 0
    width: int = 0
    finite: int = 0
    nonzero: int = 0
    bad_ids: tuple[int, ...] = ()

    def count(self, ids: Int64Array, vectors_SD: Float32Array) -> None:
        """Add a slice."""
        finite = finite_rows(vectors_SD)
        self.items, self.width = self.items + ids.shape[0], vectors_SD.shape[1]
        self.finite += int(finite.sum())
        self.nonzero += int(vectors_SD.any(axis=1).sum())
        self.bad_ids = (*self.bad_ids, *ids[~finite][:3].tolist())[:3]


class AttemptFiles:
    """The files of one rank.

    Args:
        folder: of the attempt.
        rank: of this process.
        world: number of ranks.
    """

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        self.folder = folder
        names = ShardFiles.of_rank(rank)
        self.items, self.index = folder / names.items, folder / names.index
        self._own_sample = _sample_file(folder, rank)
        self._samples = [_sample_file(folder, other) for other in range(world)]

    def write_items(self, slices: Iterator[tuple[Int64Array, Float32Array]]) -> ItemsOfRank:
        """Write this rank's items, in order.

        Raises:
            IndexInputError: an id occurs twice, or a slice does not fit the others.
        """
        written, first = ItemsOfRank(), next(slices, None)

        def counted() -> Iterator[tuple[Int64Array, Float32Array]]:
            for ids, vectors_SD in chain(filter(None, [first]), slices):
                yield ids, vectors_SD
                written.count(ids, vectors_SD)

        if first is not None:
            write_slices(self.items, counted())
            refuse_twins(np.sort(read_ids(self.items)))
        return written

    def write_sample(self, wanted: int, total: int, width: int, seed: int) -> None:
        """Copy the items of this rank that are in the sample, see `in_sample`."""
        if not self.items.exists():
            write_part(self.items, np.zeros(0, np.int64), np.zeros((0, width), np.float32))

        def chosen() -> Iterator[tuple[Int64Array, Float32Array]]:
            yield np.zeros(0, np.int64), np.zeros((0, width), np.float32)
            for ids, vectors_SD in Part(self.items).slices():
                some = in_sample(ids, wanted, total, seed)
                yield ids[some], vectors_SD[some]

        write_slices(self._own_sample, chosen())

    def read_sample(self) -> Float32Array:
        """The sample of all ranks, float32 (M, D), in the order of item ids.

        Raises:
            IndexInputError: an item occurs twice.
        """
        return read_parts(self._samples)[1]

    def build_shard(
        self, centroid_LD: Float32Array, empty: UInt8Array, config: IndexConfig
    ) -> tuple[IvfIndex, Int64Array]:
        """This rank's items in the lists of an empty index (see `empty_index`), and their ids int64 (N,)."""
        ids, part = read_ids(self.items), Part(self.items)
        list_N, start = np.empty(ids.shape[0], np.int64), 0
        for _, vectors_SD in part.slices():
            list_N[start : start + vectors_SD.shape[0]] = assign_lists(vectors_SD, centroid_LD, config)
            start += vectors_SD.shape[0]
        builder = builder_for(empty, config, ids.shape[0])
        builder.reserve(np.bincount(list_N, minlength=centroid_LD.shape[0]))
        for _, vectors_SD in part.slices():
            builder.add(vectors_SD, list_N[builder.size : builder.size + vectors_SD.shape[0]])
        return builder.index(), ids

    def for_version(self) -> list[Path]:
        """The files that become part of the version."""
        paths = sorted(self.folder.iterdir())
        return [path for path in paths if path.is_file() and not path.name.startswith(".")]


def _sample_file(folder: Path, rank: int) -> Path:
    return folder / f".sample-{rank:04d}.arrow"
