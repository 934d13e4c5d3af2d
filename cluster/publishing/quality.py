"""The data of the quality gate: recent events as queries of a candidate and of the live version.

A trainer keeps the last events that it sampled. Those after the snapshot of the candidate's checkpoint are new to both
versions. A candidate has been trained on the others, so its hit rate is too high there: they are used only if the new
ones are too few, and then the gate detects broken candidates, not small losses. A refresh has no new events. It uses
the last event of some users.

Shape letters: Q users.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.queries.new_events import NewEvents
from cluster.queries.query_batch import placed_batch
from cluster.queries.query_side import QuerySide
from retrieval.versions.gate import Quality
from retrieval.versions.store import Version, VersionError, VersionStore
from streaming.arrays import Int64Array
from streaming.batches.batcher import UserAttributes
from streaming.batches.selection import count_events, select_events
from streaming.events.quoting import described
from streaming.histories.history import UserStore

MOST_EVENTS = 1024
"""Number of events per rank."""
_log = logging.getLogger(__name__)

Asked = Sequence[tuple[pa.RecordBatch, NewEvents]]
"""Batches with those of their events that are asked."""


class RecentEvents:
    """The last sampled events, at least `most` once there have been that many.

    One thread adds them; any thread may read.

    Attributes:
        added: number of batches so far.
    """

    def __init__(self, most: int = MOST_EVENTS) -> None:
        self._most, self._kept = most, 0
        self._batches: deque[pa.RecordBatch] = deque()
        self._lock = threading.Lock()
        self.added = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Add events, in TRAINING_BATCH_SCHEMA."""
        with self._lock:
            if batch.num_rows:
                self._batches.append(batch)
                self._kept += count_events(batch)
                self.added += 1
            while self._batches and self._kept - count_events(self._batches[0]) >= self._most:
                self._kept -= count_events(self._batches.popleft())

    def add_sampled(self, batch: pa.RecordBatch, sampled_E: npt.NDArray[np.bool_]) -> None:
        """Add some events of a batch."""
        if sampled_E.any():
            self.add(select_events(batch, sampled_E))

    def batches(self) -> list[pa.RecordBatch]:
        """All of them, oldest first."""
        with self._lock:
            return list(self._batches)

    def since(self, added: int) -> list[pa.RecordBatch]:
        """Those that were added after so many, oldest first."""
        with self._lock:
            new = self.added - added
            return list(self._batches)[-new:] if new else []


def last_events(
    user_Q: Int64Array, users: UserStore, attributes: UserAttributes, history_length: int
) -> pa.RecordBatch:
    """The last event of each user who has at least two, in TRAINING_BATCH_SCHEMA.

    Args:
        user_Q: int64 (Q,).
        users: histories and counts.
        attributes: the catalogue.
        history_length: W, items of history.
    """
    user_Q = user_Q[np.diff(users.last(user_Q, 2)[2]) == 2]
    items, times, offset_Q1 = users.last(user_Q, history_length + 1)
    seen, seen_Q1 = users.last_items(user_Q, users.retained)
    is_older = np.ones(seen.shape[0], np.bool_)
    is_older[seen_Q1[1:] - 1] = False
    unwanted, unwanted_Q1 = users.negatives.last_items(user_Q, history_length)
    one_Q1 = np.arange(user_Q.shape[0] + 1)
    return placed_batch(
        user_Q,
        (items, times, offset_Q1),
        users.counts(user_Q) - 1,
        attributes.user_attributes(user_Q),
        (seen[is_older], seen_Q1 - one_Q1),
        (unwanted, unwanted_Q1),
    )


def events_to_ask(
    batches: Sequence[pa.RecordBatch], candidate: QuerySide, config: FreshetConfig, comm: Collectives
) -> Asked | None:
    """Collective. The events of this rank that both versions can be asked for.

    Args:
        batches: events of this rank, in TRAINING_BATCH_SCHEMA.
        candidate: the towers, rows and catalogue of the candidate.
        config: of the run.
        comm: the ranks.
    Returns:
        The batches with such events; None if the gate is off or all ranks together have too few.
    """
    asked = [(batch, found) for batch in batches if (found := _findable(batch, candidate)).had]
    events = int(comm.exchange(np.array([float(sum(len(found.had) for _, found in asked))])).sum())
    return asked if config.index.max_quality_loss < 1 and events >= config.index.min_quality_events else None


def quality_of(
    asked: Asked,
    candidate: QuerySide,
    store: VersionStore,
    config: FreshetConfig,
    comm: Collectives,
) -> Quality | None:
    """Collective. The events of all ranks as queries of the candidate and of the live version.

    Args:
        asked: from `events_to_ask`.
        candidate: the towers, rows and catalogue of the candidate; its rows need no messages.
        store: of the versions.
        config: of the run.
        comm: the ranks.
    Returns:
        None if no version is live that can answer them.
    """
    live, problem = _live_queries(store, config, comm, [batch for batch, _ in asked])
    mine: list[Quality] = []
    failure: Exception | None = None
    try:
        mine = [_queries(batch, found, candidate, live) for batch, found in asked] if live is not None else []
    except Exception as error:  # the other ranks wait for this one's queries
        failure = error
    gathered = comm.gather_objects((mine, problem or (described(failure) if failure is not None else "")))
    problems = [f"rank {rank}: {told}" for rank, (_, told) in enumerate(gathered) if told]
    if problems or live is None:
        if problems and comm.rank == 0:
            _log.warning("hit rates are not compared with the live version's: %s", problems[0])
        return None
    parts = [part for theirs, _ in gathered for part in theirs]
    return Quality(
        query_QD=np.concatenate([part.query_QD for part in parts]),
        live_query_QD=np.concatenate([part.live_query_QD for part in parts]),
        target_Q=np.concatenate([part.target_Q for part in parts]),
        seen=[had for part in parts for had in part.seen],
        top_k=config.progressive.top_k,
    )


def _findable(batch: pa.RecordBatch, candidate: QuerySide) -> NewEvents:
    """Without deleted items: the live version may still find them, and the candidate must not."""
    new = NewEvents.of(batch)
    return new.where(~candidate.catalogue.is_deleted(new.target_S))


def _queries(batch: pa.RecordBatch, new: NewEvents, candidate: QuerySide, live: QuerySide) -> Quality:
    encoded = [side.encode(batch)[new.event_S] for side in (candidate, live)]
    return Quality(encoded[0], encoded[1], new.target_S, new.had, 0)


def _live_queries(
    store: VersionStore, config: FreshetConfig, comm: Collectives, batches: Sequence[pa.RecordBatch]
) -> tuple[QuerySide | None, str]:
    """Collective. The live version's query side, or why it cannot be read; rank 0 verifies it for all."""
    name, problem = "", ""
    if comm.rank == 0:
        try:
            name = store.live_name() or ""
            if name:
                store.verify(name, _query_files(store.open(name)))
        except (OSError, VersionError) as error:
            problem = str(error)
    name, problem = comm.gather_objects((name, problem))[0]
    if problem or not name:
        return None, problem
    try:
        return QuerySide.load(store.open(name), config.stream, only=batches), ""
    except Exception as error:
        return None, described(error)


def _query_files(version: Version) -> list[str]:
    return [name for name in version.files() if not name.startswith(("index", "items"))]
