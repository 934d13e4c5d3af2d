"""The deltas of the live version, one turn after the other: all ranks together, in one thread of each.

1. rank 0 looks which version is live. If it is another one, every rank opens its part of it, and the next snapshot
   begins at the moment that the version is of; a version of an unknown state gets no deltas. After a resume, the
   deltas of an earlier process are continued (`adopting.py`)
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
from cluster.deltas.adopting import Adopted, Restored, adopt, why_not
from cluster.deltas.committing import Committed, Committer, Part, Refused
from cluster.deltas.live_view import LiveView
from cluster.deltas.snapshot import Snapshot
from cluster.deltas.waiting_items import WaitingItems
from cluster.queries.version_store import version_store
from cluster.tables.buckets import are_endless
from cluster.tables.overlaid_rows import RowChanges
from retrieval.deltas.chain import DeltaChain
from retrieval.deltas.delta import DeltaError, DeltasDropped
from retrieval.ranks import gather_results, keep_result, on_first_rank
from retrieval.versions.store import Version
from streaming.arrays import Int64Array

_NO_IDS = np.zeros(0, np.int64)
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
        restored: what this run was resumed from; None if from nothing.
    """

    moments: Mapping[str, int]
    keep_from: int
    restored: Restored | None = None


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
        self._adopted: Adopted | None = None
        self._again = _NO_IDS
        """Items whose vectors an earlier process encoded, from rows that this run does not have."""

    def take_adopted(self) -> Adopted | None:
        """What the deltas of an earlier process have brought, once after the turn that continues them."""
        adopted, self._adopted = self._adopted, None
        return adopted

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
            turn = self._switch(live, planned)
        elif self._view is None or snapshot is None:
            turn = Turn()
        elif not self._comm.exchange(np.array([float(not snapshot.empty)])).any():
            turn = Turn(live, empty=True)
        else:
            turn = self._write(self._view, snapshot, covered)
        return replace(turn, keep_from=planned.keep_from)

    def _switch(self, live: str, planned: Plan) -> Turn:
        self._view = self._committer = self._adopted = None
        self._again = _NO_IDS
        moment, adopts, reason = on_first_rank(self._comm, lambda: self._look(live, planned))
        if moment is not None:
            self._view = keep_result(self._comm, lambda: self._open(live))
            self._waiting = self._nothing_waits(self._view.base_items)
        if adopts:
            self._adopted = keep_result(self._comm, lambda: self._adopt(live))
            self._again = self._adopted.item_ids
            self._waiting.encoded(self._again)
        self._seen = live
        return Turn(live if moment is not None else "", begin_at=moment, refresh=reason)

    def _look(self, live: str, planned: Plan) -> tuple[int | None, bool, str]:
        """The moment that a version is of, and whether deltas of an earlier process are continued; or why not."""
        if not live:
            return None, False, ""
        version = self._store.open(live)
        moment = planned.moments.get(str(version.manifest.get("checkpoint", "")))
        restored = planned.restored
        if restored is None and moment is None:
            return None, False, f"{live} is not of a checkpoint that this process has written"
        committer = Committer(self._store, version, self._config, self._check)
        if moment is None or committer.number:
            if restored is None:
                return None, False, f"{live} has deltas that this process has not written"
            moment, reason = self._continued(version, committer, restored, planned.moments)
            if reason:
                return None, False, reason
        self._committer = committer
        return moment, committer.number > 0, ""

    def _continued(
        self, version: Version, committer: Committer, restored: Restored, moments: Mapping[str, int]
    ) -> tuple[int | None, str]:
        """The moment of the restored checkpoint, or why the deltas of an earlier process are not continued."""
        moment = moments.get(restored.location)
        try:
            deltas = committer.earlier()
            reason = why_not(version, deltas, restored, self._config)
            if not reason and moment is not None:
                committer.go_on_after(deltas)
        except DeltaError as error:
            reason = str(error)
        return moment, reason or ("" if moment is not None else f"{version.name} is of an earlier state")

    def _adopt(self, name: str) -> Adopted:
        deltas = DeltaChain(self._store, self._store.open(name)).after(0)
        return adopt(list(deltas), self._comm.rank, self._comm.world)

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
            fresh_N = items.fresh_N | np.isin(items.ids, self._again)
            self._waiting.add(items.ids, items.category_NK, moved_N, items.traffic_N, fresh_N)
            self._again = _NO_IDS
            ids, category_NK = self._waiting.choose()
            vectors = view.encode(ids, category_NK)
            return Part(
                snapshot.changes,
                ids,
                vectors,
                items.deleted,
                covered.append_ms,
                len(self._waiting),
                snapshot.left,
            )

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
