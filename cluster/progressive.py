"""Progressive validation: events are scored before they are trained on, so nothing leaks.

Shape letters: E sampled events of this rank, I items known before the step, R recent items of a user.

A hash of its position decides whether an event is in the sample. It is ranked among all items known before its step, with the
user's seen items removed; ties count half. An item that nobody had heard of is a miss; an item that the user has had
before is not scored, since it could not be recommended. The baselines rank the same events at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from numba import njit

from cluster.candidates import Runs
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.item_encoding import encode_owned_items, gather_known_items
from cluster.sharded_embedding import ShardedEmbedding
from cluster.train_step import PreparedStep
from model.baselines.cooccurrence import StreamingCooccurrence
from model.baselines.popularity import StreamingPopularity
from model.cl_epidtn import CLEPIDTN
from model.key_index import KeyIndex, hash_keys
from model.metrics import full_ranks
from streaming.catalogue import Catalogue

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

SYSTEMS = ("hits", "popularity_hits", "cooccurrence_hits")
_RECENT = 20


@dataclass
class Curve:
    """Sample size and hits of each system in bins of trained events; the same on every rank."""

    bin_events: int
    bins: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in ("sample", *SYSTEMS)})

    def add(self, events_before: int, totals: npt.NDArray[np.float64]) -> None:
        """Add one step's (sample, hits, popularity hits, co-occurrence hits), summed over ranks."""
        place = events_before // self.bin_events
        for name, value in zip(self.bins, totals.tolist(), strict=True):
            values = self.bins[name]
            values.extend([0.0] * (place + 1 - len(values)))
            values[place] += value

    def to_json(self) -> dict[str, object]:
        """As `progress.json` and the manifest hold it."""
        return {"bin_events": self.bin_events, **self.bins}


class ProgressiveValidation:
    """Scores the sampled events of each step and keeps the streaming baselines."""

    def __init__(
        self,
        model: CLEPIDTN,
        table: ShardedEmbedding,
        catalogue: Catalogue,
        comm: Collectives,
        config: FreshetConfig,
    ) -> None:
        self.model, self.table, self.catalogue = model, table, catalogue
        self.popularity = StreamingPopularity()
        self.cooccurrence = StreamingCooccurrence()
        self.recent_queries: list[npt.NDArray[np.float32]] = []
        """The last scored query vectors, for the recall gate of the index."""
        self._positions = KeyIndex()
        self._comm, self._config = comm, config

    def score(self, batch: pa.RecordBatch, prepared: PreparedStep) -> npt.NDArray[np.float64]:
        """Collective. (sample, hits, popularity hits, co-occurrence hits) of this rank's events of the step."""
        if self._config.evaluation.sample_fraction == 0:
            return np.zeros(1 + len(SYSTEMS))
        ids, vectors = encode_owned_items(self.model, self.table, self.catalogue, self._comm)
        items_ID = gather_known_items(ids, vectors, self.catalogue, self.table, self._comm)
        known = prepared.known_before
        self._follow_catalogue()
        target_E = self._dense(prepared.runs.targets_E)
        recent_ER = self._recent_items(prepared.runs)
        drop_EI = self._seen(prepared.runs, known)
        sampled = sample_mask(batch, self._config.evaluation.sample_fraction)
        repeated = (
            np.take_along_axis(drop_EI, np.minimum(target_E, known - 1)[:, None], 1)[:, 0]
            if known
            else sampled
        )
        chosen = np.flatnonzero(sampled & ~(repeated & (target_E < known)))
        totals = self._hits(prepared, items_ID[:known], chosen, target_E, recent_ER, drop_EI)
        self._update_baselines(target_E, recent_ER)
        return totals

    @torch.no_grad()
    def _hits(
        self,
        prepared: PreparedStep,
        items_ID: torch.Tensor,
        chosen: Int64Array,
        target_E: Int64Array,
        recent_ER: Int64Array,
        drop_EI: BoolArray,
    ) -> npt.NDArray[np.float64]:
        totals = np.zeros(1 + len(SYSTEMS))
        if chosen.shape[0] == 0:
            return totals
        totals[0] = chosen.shape[0]
        known = items_ID.shape[0]
        encoded = self.model.encode_queries(prepared.lookup.rows_UD.detach(), prepared.queries)
        queries_ED = encoded.vectors_ED[torch.from_numpy(chosen).to(items_ID.device)]
        self._remember(queries_ED.cpu().numpy())
        heard_of = chosen[target_E[chosen] < known]
        if heard_of.shape[0] == 0:
            return totals
        scores_EI = (queries_ED[torch.from_numpy(target_E[chosen] < known)] @ items_ID.T).cpu().numpy()
        systems = [scores_EI]
        if self._baselines_on():
            systems += [
                self.popularity.scores(recent_ER[heard_of], known),
                self.cooccurrence.scores(recent_ER[heard_of], known),
            ]
        for place, scores in enumerate(systems, start=1):
            ranks = full_ranks(scores, target_E[heard_of], drop_EI[heard_of])
            totals[place] = hits_at(ranks, self._config.evaluation.top_k)
        return totals

    def _update_baselines(self, target_E: Int64Array, recent_ER: Int64Array) -> None:
        if not self._config.evaluation.baselines:
            return
        events = self._comm.gather_ints(np.concatenate([target_E[:, None], recent_ER], axis=1))
        if self._baselines_on():
            self.popularity.update(events[:, 0], events[:, 1:])
            self.cooccurrence.update(events[:, 0], events[:, 1:])

    def _baselines_on(self) -> bool:
        limit = self._config.evaluation.baseline_max_items
        return self._config.evaluation.baselines and len(self._positions) <= limit

    def _follow_catalogue(self) -> None:
        new = self.catalogue.item_ids[len(self._positions) :]
        self._positions.add(np.zeros(new.shape[0], np.int16), new)

    def _dense(self, ids: Int64Array) -> Int64Array:
        return self._positions.find(np.zeros(ids.shape[0], np.int16), ids)

    def _recent_items(self, runs: Runs) -> Int64Array:
        """Dense indices of the last items before each event, int64 (E, 20), padded with -1."""
        dense = self._dense(runs.items)
        place_E = _target_places(runs)
        first_E = runs.item_offsets_N1[runs.run_E]
        at_ER = place_E[:, None] - 1 - np.arange(_RECENT)[None, :]
        inside = at_ER >= first_E[:, None]
        if dense.shape[0] == 0:
            return np.full(at_ER.shape, -1, np.int64)
        return np.where(inside, dense[np.maximum(at_ER, 0)], -1)

    def _seen(self, runs: Runs, known: int) -> BoolArray:
        return _seen_before(
            self._dense(runs.items),
            runs.item_offsets_N1,
            runs.context_N,
            self._dense(runs.seen),
            runs.seen_offsets_N1,
            runs.targets_E.shape[0],
            known,
        )

    def _remember(self, queries: npt.NDArray[np.float32]) -> None:
        self.recent_queries = [*self.recent_queries[-40:], queries]


def hits_at(ranks: npt.NDArray[np.float64], top_k: int) -> float:
    """Expected hits in the top k of ranks that count ties half, rank 0 being the best."""
    return float((ranks < top_k).sum())


def sample_mask(batch: pa.RecordBatch, fraction: float) -> BoolArray:
    """bool (E,): the events that a hash of (partition, offset, row) puts into the sample."""
    offsets = batch.column("offset").flatten().to_numpy()
    rows = batch.column("row").flatten().to_numpy().astype(np.int64)
    counts = np.diff(batch.column("offset").offsets.to_numpy())
    partitions = np.repeat(batch.column("partition").to_numpy(), counts).astype(np.int16)
    bits = hash_keys(partitions, (offsets << 20) ^ rows)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53 < fraction


def _target_places(runs: Runs) -> Int64Array:
    """Where each event's item stands in `runs.items`."""
    lengths = np.diff(runs.item_offsets_N1)
    within = np.arange(runs.items.shape[0]) - np.repeat(runs.item_offsets_N1[:-1], lengths)
    return np.flatnonzero(within >= np.repeat(runs.context_N, lengths))


@njit(cache=True, nogil=True)
def _seen_before(
    items: Int64Array,
    item_offsets: Int64Array,
    context: Int64Array,
    seen: Int64Array,
    seen_offsets: Int64Array,
    events: int,
    known: int,
) -> BoolArray:
    """bool (E, I): items that the event's user had before the event."""
    out = np.zeros((events, known), np.bool_)
    e = 0
    for n in range(context.shape[0]):
        had = np.zeros(known, np.bool_)
        for k in range(seen_offsets[n], seen_offsets[n + 1]):
            if 0 <= seen[k] < known:
                had[seen[k]] = True
        for k in range(item_offsets[n], item_offsets[n + 1]):
            if k - item_offsets[n] >= context[n]:
                out[e] = had
                e += 1
            if 0 <= items[k] < known:
                had[items[k]] = True
    return out
