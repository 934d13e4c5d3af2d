"""From rows to a live index version: every rank encodes its own items, rank 0 builds, gates and promotes.

snapshot (collective, between two steps)    each rank: item tower over its own items ► Arrow part, its rows ► Arrow part
                                            rank 0: query tower, recent queries, append times of what was trained
build (rank 0, in a thread)                 Faiss IVF ► gate ► manifest ► pointer swap, while training goes on

Every attempt has a folder of its own, so that a trainer and any number of refreshes may publish beside one another; its
ranks own it together, and it is removed by the next attempt, of anybody, once all of them are gone. Storage that fails
costs the version, not the run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cluster.checkpoints.claim import StorageTaken
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.observability.freshness import Freshness, UnpublishedAppends
from cluster.publishing.index_device import index_settings, with_room
from cluster.publishing.item_encoding import encode_owned_items
from cluster.publishing.query_side import save_query_side
from cluster.publishing.version_store import version_store
from cluster.storage_trouble import StorageTrouble
from cluster.tables.sharded_embedding import ShardedEmbedding
from model.two_tower import TwoTower
from retrieval.storage.owned_folder import LOCK, OwnedFolder, OwnedFolders, share_folder
from retrieval.versions.publish import PublishReport, publish, write_part
from retrieval.versions.store import VersionError
from streaming.catalogue.catalogue import Catalogue

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """What one version is built from, all of the same step."""

    folder: OwnedFolder | None  # on rank 0
    parts: list[Path]
    items: int
    queries: npt.NDArray[np.float32]
    append_ms: npt.NDArray[np.int64]
    metadata: dict[str, object]


class Publisher:
    """Publishes index versions of one run; one at a time.

    Args:
        comm: the ranks.
        config: settings; versions go to `train.index_path`, by default to `storage_path/index`.
        check: called on rank 0 before a version is begun and before it goes live; raises if it must not.
    """

    def __init__(
        self, comm: Collectives, config: FreshetConfig, check: Callable[[], None] = lambda: None
    ) -> None:
        self.storage = Path(config.storage_path)
        self.store = version_store(config)
        self.unpublished = UnpublishedAppends()
        self.freshness = Freshness()
        self.last: PublishReport | None = None
        self.published = 0
        self.error: BaseException | None = None
        """What is no matter of storage; `wait` raises it."""
        self._comm, self._config, self._check = comm, config, check
        self._attempts = OwnedFolders(self.storage / ".publish", "attempt-")
        self._trouble = StorageTrouble("index versions cannot be written")
        self._index_config = index_settings(config)  # one `device` setting decides for towers and index alike
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """A version is being built (rank 0)."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def problem(self) -> str:
        """Why the storage takes no versions at present (rank 0); empty if it does."""
        return self._trouble.problem

    def snapshot(
        self,
        model: TwoTower,
        table: ShardedEmbedding,
        catalogue: Catalogue,
        queries: list[npt.NDArray[np.float32]],
        metadata: dict[str, object],
    ) -> Snapshot | None:
        """Collective. Write this rank's parts; rank 0 also writes the query tower and the catalogue.

        None on every rank if the storage failed on one of them: it is logged once, and the next attempt is as good.
        """
        folder, problem = self._begin_attempt() if self._comm.rank == 0 else (None, "")
        path, problem = self._comm.gather_objects((str(folder.path) if folder else "", problem))[0]
        ids, vectors = encode_owned_items(model, table, catalogue, self._comm)
        if not problem:
            problem = self._write_parts(Path(path), ids, vectors.cpu().numpy(), model, table, catalogue)
        width, appends = self._config.model.dim, self.unpublished.drain()
        mine = np.concatenate([np.zeros((0, width), np.float32), *queries])
        gathered = self._comm.gather_objects((problem, str(self._part(Path(path))), mine, appends))
        problems = [f"rank {rank}: {entry[0]}" for rank, entry in enumerate(gathered) if entry[0]]
        if problems:
            self.unpublished.add(appends)
            if folder is not None:
                folder.remove()
            if self._comm.rank == 0:
                self._trouble.failed(problems[0])
            return None
        return Snapshot(
            folder,
            [Path(entry[1]) for entry in gathered],
            catalogue.item_count,
            np.ascontiguousarray(np.concatenate([entry[2] for entry in gathered])),
            np.concatenate([entry[3] for entry in gathered]),
            metadata,
        )

    def build_in_background(self, snapshot: Snapshot) -> None:
        """Rank 0: build and promote while training goes on."""
        self._thread = threading.Thread(target=self._build_safely, args=(snapshot,), name="publish")
        self._thread.start()

    def build(self, snapshot: Snapshot) -> PublishReport:
        """Rank 0: build, gate and promote; a version that fails its gate leaves the live one in place.

        Raises:
            OSError, VersionError: the storage failed.
        """
        assert snapshot.folder is not None
        try:
            extra = {path.name: path for path in snapshot.folder.path.iterdir() if path.name != LOCK}
            for part in snapshot.parts:
                extra.pop(part.name, None)
            report = publish(
                self.store,
                snapshot.parts,
                snapshot.queries,
                with_room(self._index_config, snapshot.items, self._config.model.dim),
                extra_files=extra,
                metadata=snapshot.metadata,
                seed=self._config.seed,
                before_commit=self._check,
            )
        finally:
            snapshot.folder.remove()
        if report.version is not None:
            self.published += 1
            self.freshness.add(time.time() - snapshot.append_ms / 1000.0)
        else:
            self.unpublished.add(snapshot.append_ms)
        self.last = report
        self._trouble.works()
        return report

    def wait(self) -> None:
        """Rank 0: until the version in progress is live, refused or given up; raises what is no matter of storage."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self.error is not None:
            raise self.error

    def _begin_attempt(self) -> tuple[OwnedFolder | None, str]:
        try:
            self._check()
            folder = self._attempts.make()
            folder.share()
        except OSError as error:
            return None, str(error)
        return folder, ""

    def _part(self, folder: Path) -> Path:
        return folder / f"items-{self._comm.rank:04d}.arrow"

    def _write_parts(
        self,
        folder: Path,
        ids: npt.NDArray[np.int64],
        vectors: npt.NDArray[np.float32],
        model: TwoTower,
        table: ShardedEmbedding,
        catalogue: Catalogue,
    ) -> str:
        """What this rank adds to an attempt; what went wrong, if something did."""
        try:
            with share_folder(folder):
                write_part(self._part(folder), ids, vectors)
                save_query_side(folder, model, table, catalogue, self._config, self._comm)
        except OSError as error:
            return str(error)
        return ""

    def _build_safely(self, snapshot: Snapshot) -> None:
        try:
            self.build(snapshot)
        except (OSError, VersionError) as error:
            self.unpublished.add(snapshot.append_ms)
            self._trouble.failed(error)
        except StorageTaken as error:  # no bug: it ends the run with one line
            self.error = error
        except Exception as error:  # the thread must not die in silence: `wait` and the worker loop raise it
            _log.exception("publishing step %s failed", snapshot.metadata.get("step"))
            self.error = error
