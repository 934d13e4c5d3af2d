"""Item vectors to a live version: build, tune, gate, commit, promote."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from retrieval.config import IndexConfig
from retrieval.exact import exact_top_k
from retrieval.gate import GateReport, check_version, overlap_of
from retrieval.index import IndexInputError, IvfIndex, check_items
from retrieval.searcher import INDEX_FILE, ITEMS_FILE, LoadedVersion
from retrieval.tuning import choose_nprobe
from retrieval.version import Version, VersionStore

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

_MOST_QUERIES = 2048
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishReport:
    """What came of one attempt. `version` is None if a gate refused it; the live version is then the old one."""

    version: Version | None
    items: int
    kind: str
    nlist: int
    nprobe: int
    recall: float
    gate: GateReport
    seconds: dict[str, float] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """The numbers, ready for JSON."""
        return {
            "items": self.items,
            "kind": self.kind,
            "nlist": self.nlist,
            "nprobe": self.nprobe,
            "recall": self.recall,
            "gate": [asdict(check) for check in self.gate.checks],
            "seconds": self.seconds,
        }


def write_part(path: Path, item_ids: Int64Array, vectors_ND: Float32Array) -> None:
    """Write one rank's items as an Arrow file: id int64, vector fixed-size list of float32."""
    flat = pa.array(np.ascontiguousarray(vectors_ND, np.float32).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, vectors_ND.shape[1])
    table = pa.table({"item_id": pa.array(item_ids, pa.int64()), "vector": vectors})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read_parts(paths: Sequence[Path]) -> tuple[Int64Array, Float32Array]:
    """Ids int64 (N,), ascending, and vectors float32 (N, D) of all parts.

    Raises:
        IndexInputError: no part, an item in two parts, or vectors that are not finite.
    """
    if not paths:
        raise IndexInputError("there are no parts to publish")
    table = pa.concat_tables([pa.ipc.open_file(pa.py_buffer(p.read_bytes())).read_all() for p in paths])
    ids = table["item_id"].to_numpy()
    flat = table["vector"].combine_chunks().flatten().to_numpy()
    vectors = flat.reshape(ids.shape[0], table.schema.field("vector").type.list_size)
    order = np.argsort(ids, kind="stable")
    ids, vectors = ids[order], np.ascontiguousarray(vectors[order])
    check_items(ids, vectors)
    return ids, vectors


def publish(
    store: VersionStore,
    parts: Sequence[Path],
    query_QD: Float32Array,
    config: IndexConfig,
    *,
    extra_files: Mapping[str, Path],
    metadata: Mapping[str, object],
    seed: int,
) -> PublishReport:
    """Build a version beside the live one and promote it if it passes its gates.

    Args:
        store: where versions live.
        parts: what `write_part` wrote, one per rank; every item in one of them.
        query_QD: float32, recent query vectors of the same model; recall is tuned and gated on them. Without any, on
            item vectors.
        config: index kind, sizes, gates.
        extra_files: copied into the version under these names (query tower, rows, catalogue).
        metadata: goes into the manifest (`known_items` is what coverage is measured against).
        seed: of k-means.
    Raises:
        IndexInputError: the parts do not make an index.
    """
    clock = _Clock()
    ids, vectors = read_parts(parts)
    index = IvfIndex.build(vectors, config, seed=seed)
    clock.lap("build_s")
    queries = (query_QD if query_QD.shape[0] else vectors)[-_MOST_QUERIES:]
    wanted = exact_top_k(queries, vectors, min(config.recall_k, ids.shape[0]))
    nprobe, recall = choose_nprobe(index, queries, wanted, config)
    known = int(str(metadata.get("known_items", ids.shape[0])))
    overlap = _overlap_with_live(store, index, ids, queries, nprobe, config)
    gate = check_version(index, config, recall=recall, known_items=known, overlap=overlap)
    clock.lap("gate_s")
    version = None
    if gate.passed:
        described = {
            **metadata,
            "items": ids.shape[0],
            "dim": index.dim,
            "kind": config.kind,
            "nlist": index.nlist,
            "nprobe": nprobe,
            "recall": recall,
            "recall_k": config.recall_k,
            "gate": [asdict(check) for check in gate.checks],
        }
        version = _commit(store, index, ids, vectors, extra_files, described)
        store.prune(config.versions_to_keep)
    else:
        _log.warning("a new index version was refused, the live one stays: %s", gate.why_not())
    clock.lap("commit_s")
    return PublishReport(version, ids.shape[0], config.kind, index.nlist, nprobe, recall, gate, clock.laps)


def _commit(
    store: VersionStore,
    index: IvfIndex,
    ids: Int64Array,
    vectors: Float32Array,
    extra_files: Mapping[str, Path],
    described: Mapping[str, Any],
) -> Version:
    building = store.begin()
    index.save(building / INDEX_FILE)
    write_part(building / ITEMS_FILE, ids, vectors)
    for name, source in extra_files.items():
        shutil.copyfile(source, building / name)
    version = store.commit(building, described)
    return store.promote(version.name)


def _overlap_with_live(
    store: VersionStore,
    index: IvfIndex,
    ids: Int64Array,
    queries: Float32Array,
    nprobe: int,
    config: IndexConfig,
) -> float | None:
    if config.min_overlap == 0:
        return None
    live = store.current()
    if live is None:
        return None
    rows, _ = index.search(queries, config.recall_k, nprobe)
    previous_ids, _ = LoadedVersion.load(live).search(queries, config.recall_k)
    return overlap_of(np.where(rows >= 0, ids[np.maximum(rows, 0)], -1), previous_ids)


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name], self._last = now - self._last, now
