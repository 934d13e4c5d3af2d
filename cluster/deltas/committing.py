"""Rank 0's part of a delta: the files of all ranks in one folder, gates, and the commit.

Shape letters: N items, D columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from cluster.config import FreshetConfig
from cluster.queries.changes import Changes, write_changes
from retrieval.checks import Check
from retrieval.deltas.base_vectors import BaseVectors
from retrieval.deltas.chain import DeltaChain
from retrieval.deltas.delta import Delta, write_items
from retrieval.deltas.gates import Norms, check_delta
from retrieval.deltas.limits import ChangeMeter, refresh_due
from retrieval.indexes.parts import read_ids
from retrieval.ranks import OneRank
from retrieval.versions.probe import DeltaProbe
from retrieval.versions.shards import shards_of
from retrieval.versions.store import Version, VersionStore
from streaming.arrays import Float32Array, Int64Array


@dataclass(frozen=True)
class Part:
    """What one rank contributes to a delta.

    Attributes:
        changes: rows and records.
        item_ids: int64 (N,), encoded for this delta.
        vectors_ND: float32.
        deleted: int64 (n,), items.
        append_ms: int64 (n,), of events that the delta covers.
        waiting: number of items that wait to be encoded, these included.
        rows_left: number of changed rows that later deltas have.
    """

    changes: Changes
    item_ids: Int64Array
    vectors_ND: Float32Array
    deleted: Int64Array
    append_ms: Int64Array
    waiting: int
    rows_left: int = 0


@dataclass(frozen=True)
class Committed:
    """A delta that readers can find.

    Attributes:
        number: of the version's deltas.
        share: of the version's items that its deltas have brought, replaced or deleted.
        limit: the limit that the version's deltas have passed, in words; empty if none.
        append_ms: int64 (n,), when the events that it covers were appended, of all ranks.
    """

    number: int
    share: float
    limit: str
    append_ms: Int64Array


@dataclass(frozen=True)
class Refused:
    """A delta that failed a gate and was put aside.

    Attributes:
        name: under which it is kept.
        reason: the failed gates, in words.
    """

    name: str
    reason: str


class Committer:
    """Commits the deltas of one version; on rank 0.

    Args:
        store: of the versions.
        version: live.
        config: the run's.
        check: called before each commit; raises if it must not be.
    Raises:
        VersionError, OSError: the version cannot be read.
    """

    def __init__(
        self, store: VersionStore, version: Version, config: FreshetConfig, check: Callable[[], None]
    ) -> None:
        self._chain = DeltaChain(store, version)
        self._config, self._check = config, check
        self._probe = DeltaProbe(version)
        files = [version.file(shard.items) for shard in shards_of(version)]
        self._norms = Norms.of(files)
        ids = np.concatenate([read_ids(file) for file in files])
        self._meter = ChangeMeter(self._probe.list_lengths, self._probe.lists_of, ids, BaseVectors(files))
        self.number = len(self._chain.names())
        """How many deltas the version has."""

    def earlier(self) -> list[Delta]:
        """The deltas that the version has already, verified.

        Raises:
            DeltaError: one of them is damaged or missing.
        """
        return list(self._chain.after(0))

    def go_on_after(self, deltas: Sequence[Delta]) -> None:
        """Count these towards the limits."""
        for delta in deltas:
            self._meter.add(*delta.items(), delta.deleted())

    def commit(self, parts: Sequence[Part], described: Mapping[str, object]) -> Committed | Refused:
        """Write the parts of all ranks as the next delta, if it passes its gates.

        Args:
            parts: in rank order.
            described: goes into the manifest, with the counts and the gates' figures.
        Raises:
            OSError, DeltaError: it was not committed.
        """
        changes = Changes.joined([part.changes for part in parts])
        ids = np.concatenate([part.item_ids for part in parts])
        vectors_ND = np.concatenate([part.vectors_ND for part in parts])
        deleted = np.concatenate([part.deleted for part in parts])
        appends = np.concatenate([part.append_ms for part in parts])
        report = check_delta(OneRank(), ids, vectors_ND, self._norms, self._probe.finds, self._config.index)
        finite = float(np.isfinite(changes.rows.values).all())
        report = replace(
            report, checks=[*report.checks, Check("finite", finite, 1.0, finite == 1, "of rows")]
        )
        told = {
            **described,
            "rows_left": sum(part.rows_left for part in parts),
            "rows": int(changes.rows.ids.shape[0]),
            "removed_rows": int(changes.rows.removed_ids.shape[0]),
            "items": int(ids.shape[0]),
            "deleted": int(deleted.shape[0]),
            "records": int(changes.catalogue.items.num_rows + changes.catalogue.users.num_rows),
            "waiting": sum(part.waiting for part in parts) - int(ids.shape[0]),
            "newest_append_ms": int(appends.max(initial=0)),
            "gate": asdict(report),
        }
        folder = self._chain.begin()
        try:
            write_items(folder.path, 0, ids, vectors_ND, deleted)
            write_changes(folder.path, 0, changes)
            self._check()
            if not report.passed:
                return Refused(self._chain.aside(folder, told, report.why_not()), report.why_not())
            self.number = self._chain.commit(folder, told).number
        except Exception:
            folder.remove()
            raise
        change = self._meter.add(ids, vectors_ND, deleted)
        few = self._meter.items <= self._config.index.delta_max_items
        due = None if few else refresh_due(change, self._config.index)
        return Committed(self.number, change.share, due.in_words() if due is not None else "", appends)
