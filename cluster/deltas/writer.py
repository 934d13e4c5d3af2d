"""The deltas of the live version, one turn after the other: all ranks together, in one thread of each.

1. rank 0 looks which version is live. If it is another one, every rank opens its part of it, and the next snapshot
   begins at the moment that the version is of; a version of an unknown state gets no deltas
2. the ranks exchange the changed rows of the small tables; each encodes the items of its own that are new or moved most
3. rank 0 writes the parts of all ranks into one folder, because a file costs an fsync or a request, gates, and commits

So a turn costs what has changed, and storage sees one writer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.deltas.committing import Committed, Committer, Part, Refused
from cluster.deltas.live_view import LiveView
from cluster.deltas.snapshot import Snapshot
from cluster.deltas.waiting_items import WaitingItems
from cluster.queries.version_store import version_store
from cluster.tables.buckets import are_endless
from cluster.tables.overlaid_rows import RowChanges
from retrieval.deltas.delta import DeltaError, DeltasDropped
from retrieval.ranks import gather_results, keep_result, on_first_rank
from streaming.arrays import Int64Array

_log = logging.getLogger(__name__)
_MOVED_SHARE = 0.5
"""Share of the limit `index.max_delta_share` that items may have because they moved."""


@dataclass(frozen=True)
class Covered:
    """What a snapshot is of.

    Attributes:
        step: the last one.
        events_trained: of all ranks.
        append_ms: int64 (n,), when events of this rank since the last delta were appended to the topic.
    """

    step: int
    events_trained: int
    append_ms: Int64Array


@dataclass(frozen=True)
class Plan:
    """What only rank 0 knows before a turn.

    Attributes:
        moments: numbers of the moments that checkpoints of this process are of, by the checkpoint's location.
        keep_from: number of the first moment that a version to come can be of.
    """

    moments: Mapping[str, int]
    keep_from: int


@dataclass(frozen=True)
class Turn:
    """The outcome of a turn; the same on every rank.

    Attributes:
        version: the version that gets deltas; empty if none does.
        committed: the delta that was committed.
        empty: whether nothing had changed on any rank.
        begin_at: number of the moment at which the next snapshot begins; None: where the last delta ended.
        keep_from: the plan's.
        refresh: why a full refresh is needed; empty if it is not.
    """

    version: str = ""
    committed: Committed | None = None
    empty: bool = False
    begin_at: int | None = None
    keep_from: int = 0
    refresh: str = ""


class DeltaWriter:
    """Writes the deltas of one rank's run, with the other ranks.

    Args:
        comm: the ranks, over a connection of this thread.
        config: the run's.
        device: that encodes.
        check: called on rank 0 before a delta is committed; raises if it must not.
    """

    def __init__(
        self, comm: Collectives, config: FreshetConfig, device: torch.device, check: Callable[[], None]
    ) -> None:
        self._comm, self._config, self._device = comm, config, device
        self._store = version_store(config)
        self._check = check
        self._seen = ""
        """The name of the version that was live in the last turn."""
        self._view: LiveView | None = None
        self._waiting = self._nothing_waits(0)
        self._committer: Committer | None = None

    def forget(self) -> None:
        """Look at the live version as if it were new, because the run's state or its deltas have been replaced."""
        self._seen, self._view = "", None

    def turn(self, snapshot: Snapshot | None, covered: Covered, plan: Callable[[], Plan]) -> Turn:
        """Collective. Commit a snapshot as a delta of the live version, if it is the one that the snapshot is for.

        Args:
            snapshot: None if no version gets deltas yet.
            covered: what it is of.
            plan: called on rank 0.
        Raises:
            OSError, VersionError, DeltaError, CheckpointError: the delta was not committed.
        """
        live, planned = on_first_rank(self._comm, lambda: (self._store.live_name() or "", plan()))
        if live != self._seen:
            turn = self._switch(live, planned.moments)
        elif self._view is None or snapshot is None:
            turn = Turn()
        elif not self._comm.exchange(np.array([float(not snapshot.empty)])).any():
            turn = Turn(live, empty=True)
        else:
            turn = self._write(self._view, snapshot, covered)
        return replace(turn, keep_from=planned.keep_from)

    def _switch(self, live: str, moments: Mapping[str, int]) -> Turn:
        self._view = self._committer = None
        moment, reason = on_first_rank(self._comm, lambda: self._look(live, moments))
        if moment is not None:
            self._view = keep_result(self._comm, lambda: self._open(live))
            self._waiting = self._nothing_waits(self._view.base_items)
        self._seen = live
        return Turn(live if moment is not None else "", begin_at=moment, refresh=reason)

    def _look(self, live: str, moments: Mapping[str, int]) -> tuple[int | None, str]:
        """The moment that a version is of, or why it gets no deltas."""
        if not live:
            return None, ""
        version = self._store.open(live)
        moment = moments.get(str(version.manifest.get("checkpoint", "")))
        if moment is None:
            return None, f"{live} is not of a checkpoint that this process has written"
        committer = Committer(self._store, version, self._config, self._check)
        if committer.number:
            return None, f"{live} has deltas that this process has not written"
        self._committer = committer
        return moment, ""

    def _open(self, name: str) -> LiveView:
        return LiveView.open(
            self._store.open(name), self._config, self._device, self._comm.rank, self._comm.world
        )

    def _write(self, view: LiveView, snapshot: Snapshot, covered: Covered) -> Turn:
        small = self._comm.gather_objects(_of_small_tables(snapshot.changes.rows))

        def encode() -> Part:
            others = [rows for rank, rows in enumerate(small) if rank != self._comm.rank]
            items = snapshot.items
            # A snapshot that is not committed has moved the rows too; what it moved waits with its priority.
            moved_N = view.change(RowChanges.joined([snapshot.changes.rows, *others]), items.ids)
            self._waiting.remove(items.deleted)
            self._waiting.add(items.ids, items.category_NK, moved_N, items.traffic_N, items.fresh_N)
            ids, category_NK = self._waiting.choose()
            vectors = view.encode(ids, category_NK)
            return Part(snapshot.changes, ids, vectors, items.deleted, covered.append_ms, len(self._waiting))

        parts = gather_results(self._comm, encode)
        described = {"step": covered.step, "events_trained": covered.events_trained}
        committed = on_first_rank(self._comm, lambda: self._commit(parts, described))
        if committed is None:
            self.forget()
            return Turn()
        if isinstance(committed, Refused):
            self._view = None
            return Turn(refresh=f"{committed.name} of {self._seen} was refused: {committed.reason}")
        self._waiting.encoded(parts[self._comm.rank].item_ids)
        return Turn(self._seen, committed)

    def _commit(self, parts: list[Part], described: Mapping[str, object]) -> Committed | Refused | None:
        """None if another version went live meanwhile, or the deltas so far were dropped."""
        assert self._committer is not None
        try:
            return self._committer.commit(parts, described)
        except (OSError, DeltaError) as error:
            # A version that goes live takes the folder of these deltas away, at any moment.
            if isinstance(error, DeltasDropped) or self._store.live_name() != self._seen:
                _log.info("a delta of %s was dropped: %s", self._seen, error)
                return None
            raise

    def _nothing_waits(self, base_items: int) -> WaitingItems:
        index, world = self._config.index, self._comm.world
        moved = max(index.delta_max_items, int(_MOVED_SHARE * index.max_delta_share * base_items))
        budget, most_moved = (-(-most // world) for most in (index.delta_max_items, moved))
        return WaitingItems(budget, self._config.stream.max_categories, most_moved)


def _of_small_tables(rows: RowChanges) -> RowChanges:
    """The changes of tables whose rows every rank needs for its items and has in its view."""
    kept, gone = (~are_endless(tables) for tables in (rows.tables, rows.removed_tables))
    return RowChanges(
        rows.tables[kept],
        rows.ids[kept],
        rows.values[kept],
        rows.removed_tables[gone],
        rows.removed_ids[gone],
    )
