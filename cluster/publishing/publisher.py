"""From rows to a live index version: every rank encodes its own items, rank 0 builds, gates and promotes.

snapshot (collective, between two steps)    each rank: item tower over its own items ► Arrow part, its rows ► Arrow part
                                            rank 0: query tower, recent queries, append times of what was trained
build (rank 0, in a thread)                 Faiss IVF ► gate ► manifest ► pointer swap, while training goes on
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cluster.checkpoints.catalogue_files import save_catalogue
from cluster.checkpoints.row_files import save_rows
from cluster.checkpoints.tower_files import save_towers
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.device import resolve_device
from cluster.publishing.freshness import FreshnessHistogram, UnpublishedAppends
from cluster.publishing.item_encoding import encode_owned_items
from cluster.tables.sharded_embedding import ShardedEmbedding
from model.two_tower import TwoTower
from retrieval.durable_files import write_durably
from retrieval.publish import PublishReport, publish, write_part
from retrieval.version import VersionStore
from streaming.catalogue import Catalogue

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """What one version is built from, all of the same step."""

    directory: Path
    parts: list[Path]
    queries: npt.NDArray[np.float32]
    append_ms: npt.NDArray[np.int64]
    metadata: dict[str, object]


class Publisher:
    """Publishes index versions of one run; one at a time."""

    def __init__(self, comm: Collectives, config: FreshetConfig) -> None:
        self.storage = Path(config.storage_path)
        self.store = VersionStore(self.storage / "index")
        self.unpublished = UnpublishedAppends()
        self.freshness = FreshnessHistogram()
        self.last: PublishReport | None = None
        self.published = 0
        self.error: BaseException | None = None
        self._comm, self._config = comm, config
        self._index_config = config.index
        if config.index.device == "auto":  # one `device` setting decides for towers and index alike
            on_gpu = resolve_device(config.device).type == "cuda"
            self._index_config = replace(config.index, device="cuda" if on_gpu else "cpu")
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """A version is being built (rank 0)."""
        return self._thread is not None and self._thread.is_alive()

    def snapshot(
        self,
        model: TwoTower,
        table: ShardedEmbedding,
        catalogue: Catalogue,
        queries: list[npt.NDArray[np.float32]],
        metadata: dict[str, object],
    ) -> Snapshot:
        """Collective. Write this rank's parts; rank 0 also writes the query tower and the catalogue."""
        directory = self.storage / ".publish" / f"step-{int(str(metadata['step'])):08d}"
        if self._comm.rank == 0:
            shutil.rmtree(directory.parent, ignore_errors=True)
            directory.mkdir(parents=True)
        self._comm.gather_objects(None)
        ids, vectors = encode_owned_items(model, table, catalogue, self._comm)
        part = directory / f"items-{self._comm.rank:04d}.arrow"
        write_part(part, ids, vectors.cpu().numpy())
        save_rows(directory, table, self._comm.rank, self._comm.world)
        if self._comm.rank == 0:
            save_towers(directory, model, None)
            self._write_query_side(directory, catalogue)
        width = self._config.model.dim
        mine = np.concatenate([np.zeros((0, width), np.float32), *queries])
        gathered = self._comm.gather_objects((str(part), mine, self.unpublished.drain()))
        return Snapshot(
            directory,
            [Path(entry[0]) for entry in gathered],
            np.ascontiguousarray(np.concatenate([entry[1] for entry in gathered])),
            np.concatenate([entry[2] for entry in gathered]),
            metadata,
        )

    def build_in_background(self, snapshot: Snapshot) -> None:
        """Rank 0: build and promote while training goes on."""
        self._thread = threading.Thread(target=self._build_safely, args=(snapshot,), name="publish")
        self._thread.start()

    def build(self, snapshot: Snapshot) -> PublishReport:
        """Rank 0: build, gate and promote; a version that fails its gate leaves the live one in place."""
        extra = [path for path in snapshot.directory.iterdir() if path not in set(snapshot.parts)]
        report = publish(
            self.store,
            snapshot.parts,
            snapshot.queries,
            self._index_config,
            extra_files={path.name: path for path in extra},
            metadata=snapshot.metadata,
            seed=self._config.seed,
        )
        if report.version is not None:
            self.published += 1
            self.freshness.add(time.time() - snapshot.append_ms / 1000.0)
        else:
            self.unpublished.add(snapshot.append_ms)
        self.last = report
        shutil.rmtree(snapshot.directory, ignore_errors=True)
        return report

    def wait(self) -> None:
        """Rank 0: until the version in progress is live or refused; raises what its thread raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self.error is not None:
            raise self.error

    def _write_query_side(self, directory: Path, catalogue: Catalogue) -> None:
        """What turns a user into a query vector in this version's space, beside towers and rows."""
        described = {
            "model": asdict(self._config.model),
            "user_attributes": self._config.stream.user_attributes,
            "row_optimizer": self._config.train.row_optimizer,
            "admit_after": self._config.table.admit_after,
            "seed": self._config.seed,
        }
        write_durably(directory / "model.json", json.dumps(described).encode())
        save_catalogue(directory, catalogue)

    def _build_safely(self, snapshot: Snapshot) -> None:
        try:
            self.build(snapshot)
        except Exception as error:  # the thread must not die in silence: `wait` and the worker loop raise it
            _log.exception("publishing step %s failed", snapshot.metadata.get("step"))
            self.error = error
