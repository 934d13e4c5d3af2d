"""Progressive validation: events are scored before they are trained on, so nothing leaks.

Shape letters: E sampled events of this rank, I items known before the step, R recent items of a user.

A hash of its position decides whether an event is in the sample. It is ranked among all items known before
its step, with the user's seen items removed; ties count half. That costs as much as the catalogue is large, so it ends
where `progressive.exact_max_items` says. An item that was unknown is a miss; an item
that the user has had before is not scored, since it could not be recommended. The baselines rank the same events
at the same time.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from numba import njit

from cluster.collectives import Collectives
from cluster.config import FreshetConfig, ProgressiveConfig
from cluster.publishing.item_encoding import encode_owned_items, gather_known_items
from cluster.tables.sharded_embedding import ShardedEmbedding
from cluster.training.steps.candidates import Runs
from cluster.training.steps.refusal import together
from cluster.training.steps.train_step import PreparedStep
from model.baselines.cooccurrence import StreamingCooccurrence
from model.baselines.popularity import StreamingPopularity
from model.key_index import KeyIndex, hash_keys
from model.metrics import full_ranks
from model.transfer import to_device, to_host
from model.two_tower import TwoTower
from streaming.arrays import BoolArray, Float64Array, Int64Array
from streaming.catalogue.catalogue import Catalogue

_log = logging.getLogger(__name__)

SYSTEMS = ("hits", "popularity_hits", "cooccurrence_hits")
MOST_BINS = 4096
_RECENT = 20


@dataclass
class Curve:
    """Sample size and hits of each system in bins of trained events; the same on every rank.

    The width of bins doubles whenever there would be more than `MOST_BINS`, so memory, manifests and `progress.json` do
    not grow with the age of the run.
    """

    bin_events: int
    bins: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in ("sample", *SYSTEMS)})

    def add(self, events_before: int, totals: npt.NDArray[np.float64]) -> None:
        """Add one step's (sample, hits, popularity hits, co-occurrence hits), summed over ranks."""
        while events_before // self.bin_events >= MOST_BINS:
            self._widen()
        place = events_before // self.bin_events
        for name, value in zip(self.bins, totals.tolist(), strict=True):
            values = self.bins[name]
            values.extend([0.0] * (place + 1 - len(values)))
            values[place] += value

    def _widen(self) -> None:
        self.bin_events *= 2
        for name, values in self.bins.items():
            padded = [*values, 0.0] if len(values) % 2 else values
            self.bins[name] = [one + other for one, other in zip(padded[::2], padded[1::2], strict=True)]

    def to_json(self) -> dict[str, object]:
        """As `progress.json` and the manifest hold it."""
        # Copies, because the curve keeps growing while a manifest or a report holds this.
        return {"bin_events": self.bin_events, **{name: list(values) for name, values in self.bins.items()}}

    def load_json(self, saved: Mapping[str, Any]) -> None:
        """Restore from `to_json`, with bins as wide as they were then."""
        self.bin_events = int(saved["bin_events"])
        self.bins = {name: list(saved[name]) for name in self.bins}


class ProgressiveValidation:
    """Scores the sampled events of each step and keeps the streaming baselines."""

    def __init__(
        self,
        model: TwoTower,
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
        self._said_too_many = False
        self._comm, self._config = comm, config

    @property
    def _settings(self) -> ProgressiveConfig:
        return self._config.progressive

    def score(self, batch: pa.RecordBatch, prepared: PreparedStep) -> npt.NDArray[np.float64]:
        """Collective. `rank`, then `count`."""
        totals = self.rank(batch, prepared)
        self.count(prepared)
        return totals

    def rank(self, batch: pa.RecordBatch, prepared: PreparedStep) -> npt.NDArray[np.float64]:
        """Collective. (sample, hits, popularity hits, co-occurrence hits) of this rank's events of the step.

        Zeros if nothing is scored: without a sample, or with more than `progressive.exact_max_items` items.

        Raises:
            StepRefused: on every rank, if some rank cannot encode its items. An error caused by this rank's events is
                raised on this rank only, after the last message.
        """
        if self._settings.sample_fraction == 0:
            return np.zeros(1 + len(SYSTEMS))
        if self._too_many_items():
            sampled = np.flatnonzero(sample_mask(batch, self._settings.sample_fraction))
            if sampled.shape[0]:
                self._remember(self._scores(prepared, None, sampled, sampled[:0])[0])
            return np.zeros(1 + len(SYSTEMS))
        with together(self._comm, lambda: self._comm.decline(self.table.device)):
            ids, vectors = encode_owned_items(self.model, self.table, self.catalogue, self._comm)
            known_ID = gather_known_items(ids, vectors, self.catalogue, self.table, self._comm)
        column_I = self._follow_catalogue()
        runs = prepared.runs
        target_E, recent_ER = self._dense(runs.targets_E), self._recent_items(runs)
        unheard_I = np.ones(len(self._positions), np.bool_)  # deleted, or new in this very step
        unheard_I[column_I] = False
        unheard_I[self._dense(prepared.new_items)] = True
        sampled_E = sample_mask(batch, self._settings.sample_fraction)
        sampled = np.flatnonzero(sampled_E)
        seen_SI = self._seen(runs, sampled_E)
        is_new_S = ~np.take_along_axis(seen_SI, target_E[sampled][:, None], 1)[:, 0]
        chosen, seen_CI = sampled[is_new_S], seen_SI[is_new_S]
        totals = np.zeros(1 + len(SYSTEMS))
        totals[0] = chosen.shape[0]
        is_heard_C = ~unheard_I[target_E[chosen]]
        findable = chosen[is_heard_C]
        if chosen.shape[0]:
            queries_ED, found_EK = self._scores(prepared, known_ID, chosen, findable)
            self._remember(queries_ED)
            scores_EI = np.zeros((findable.shape[0], len(self._positions)), np.float32)
            scores_EI[:, column_I] = found_EK
            scores = [scores_EI, *self._baselines(recent_ER[findable])]
            drop_EI = seen_CI[is_heard_C] | unheard_I[None, :]
            for place, scores_EI in enumerate(scores, start=1):
                ranks = full_ranks(scores_EI, target_E[findable], drop_EI)
                totals[place] = (ranks < self._settings.top_k).sum()
        return totals

    def count(self, prepared: PreparedStep) -> None:
        """Collective. Let the baselines count the trained events; called after `rank`."""
        if self._settings.sample_fraction == 0 or not self._settings.baselines:
            return
        if self._too_many_items():
            if not self.cooccurrence.stopped:
                self.cooccurrence.stop()  # frees its pairs
            return
        runs = prepared.runs
        mine = np.concatenate([self._dense(runs.targets_E)[:, None], self._recent_items(runs)], axis=1)
        events = self._comm.gather_ints(mine)
        self.popularity.update(events[:, 0], events[:, 1:])
        if not self.cooccurrence.stopped and not self._cooccurrence_fits():
            _log.warning("co-occurrence is no longer counted: %s", self._too_much())
            self.cooccurrence.stop()
        self.cooccurrence.update(events[:, 0], events[:, 1:])

    def _too_many_items(self) -> bool:
        """A function of the events alone, so every rank stops at the same step."""
        known, limit = self.catalogue.item_count, self._settings.exact_max_items
        if known > limit and not self._said_too_many:
            self._said_too_many = True
            _log.warning(
                "%d items are known: events are no longer ranked among all of them "
                "(progressive.exact_max_items=%d)",
                *(known, limit),
            )
        return known > limit

    def baseline_arrays(self) -> dict[str, Int64Array]:
        """The item of each column of the baselines, and their values by column, for a checkpoint; without pairs."""
        return {
            "columns": self._positions.keys()[1].copy(),
            **{f"popularity.{name}": array for name, array in self.popularity.to_arrays().items()},
            "cooccurrence.items": np.array([self.cooccurrence.items]),
        }

    def load_baselines(self, arrays: Mapping[str, Int64Array]) -> None:
        """Restore from `baseline_arrays`; an earlier version's has no columns, so those of the catalogue are used."""
        if "columns" in arrays:
            items = np.ascontiguousarray(arrays["columns"])
            self._positions.add(np.zeros(items.shape[0], np.int16), items)
        prefix = "popularity."
        own = {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}
        self.popularity.load_arrays(own)
        self.cooccurrence.items = int(arrays["cooccurrence.items"][0])

    @torch.no_grad()
    def _scores(
        self, prepared: PreparedStep, known_ID: torch.Tensor | None, chosen: Int64Array, findable: Int64Array
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Query vectors of some events, and the known items' scores for others, none without known items."""
        self.model.eval()
        encoded = self.model.encode_queries(prepared.lookup.rows_UD.detach(), prepared.queries)
        places = torch.from_numpy(chosen), torch.from_numpy(findable)
        wanted, scored = to_device(places, encoded.vectors_ED.device)
        queries_ED = encoded.vectors_ED.index_select(0, wanted)
        others_ED = encoded.vectors_ED.index_select(0, scored)
        found_EK = others_ED[:, :0] if known_ID is None else others_ED @ known_ID.T
        queries, found = to_host([queries_ED, found_EK])
        return queries.numpy(), found.numpy()

    def _baselines(self, recent_ER: Int64Array) -> list[npt.NDArray[np.float32]]:
        if not self._settings.baselines:
            return []
        items = len(self._positions)
        scores = [self.popularity.scores(recent_ER, items)]
        if not self.cooccurrence.stopped:
            scores.append(self.cooccurrence.scores(recent_ER, items))
        return scores

    def _cooccurrence_fits(self) -> bool:
        """A function of the events alone, so every rank stops at the same step, and a resumed run too."""
        few_items = len(self._positions) <= self._settings.baseline_max_items
        return few_items and len(self.cooccurrence.pairs) < self._settings.baseline_max_pairs

    def _too_much(self) -> str:
        return (
            f"{len(self._positions)} items (progressive.baseline_max_items={self._settings.baseline_max_items}), "
            f"{len(self.cooccurrence.pairs)} pairs (progressive.baseline_max_pairs={self._settings.baseline_max_pairs})"
        )

    def _follow_catalogue(self) -> Int64Array:
        """The column of each known item; columns are permanent, in order of arrival."""
        known = self.catalogue.item_ids
        return self._positions.add(np.zeros(known.shape[0], np.int16), np.ascontiguousarray(known))

    def _dense(self, ids: Int64Array) -> Int64Array:
        return self._positions.find(np.zeros(ids.shape[0], np.int16), ids)

    def _recent_items(self, runs: Runs) -> Int64Array:
        """Dense indices of the last items before each event, int64 (E, 20), padded with -1."""
        dense = self._dense(runs.items)
        place_E = runs.target_places
        first_E = runs.item_offsets_N1[runs.run_E]
        at_ER = place_E[:, None] - 1 - np.arange(_RECENT)[None, :]
        inside = at_ER >= first_E[:, None]
        if dense.shape[0] == 0:
            return np.full(at_ER.shape, -1, np.int64)
        return np.where(inside, dense[np.maximum(at_ER, 0)], -1)

    def _seen(self, runs: Runs, wanted_E: BoolArray) -> BoolArray:
        return _seen_before(
            wanted_E,
            self._dense(runs.items),
            runs.item_offsets_N1,
            runs.context_N,
            self._dense(runs.seen),
            runs.seen_offsets_N1,
            len(self._positions),
        )

    def _remember(self, queries: npt.NDArray[np.float32]) -> None:
        self.recent_queries = [*self.recent_queries[-40:], queries]


def sample_mask(batch: pa.RecordBatch, fraction: float) -> BoolArray:
    """bool (E,): the events that a hash of (partition, offset, row) puts into the sample."""
    return sample_bits(batch) < fraction


def sample_bits(batch: pa.RecordBatch) -> Float64Array:
    """float64 (E,), 0 to 1: a hash of each event's (partition, offset, row); the sample has what is below its share."""
    offsets = batch.column("offset").flatten().to_numpy()
    rows = batch.column("row").flatten().to_numpy().astype(np.int64)
    counts = np.diff(batch.column("offset").offsets.to_numpy())
    partitions = np.repeat(batch.column("partition").to_numpy(), counts).astype(np.int16)
    bits = hash_keys(partitions, (offsets << 20) ^ rows)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


@njit(cache=True, nogil=True)
def _seen_before(
    wanted: BoolArray,
    items: Int64Array,
    item_offsets: Int64Array,
    context: Int64Array,
    seen: Int64Array,
    seen_offsets: Int64Array,
    known: int,
) -> BoolArray:
    """bool (S, I): items that the user of each wanted event had before it; nothing of the other events costs (I,)."""
    out = np.zeros((int(wanted.sum()), known), np.bool_)
    first = row = 0
    for n in range(context.shape[0]):
        events = max(0, item_offsets[n + 1] - item_offsets[n] - context[n])
        if wanted[first : first + events].any():
            had = np.zeros(known, np.bool_)
            for k in range(seen_offsets[n], seen_offsets[n + 1]):
                if 0 <= seen[k] < known:
                    had[seen[k]] = True
            for k in range(item_offsets[n], item_offsets[n + 1]):
                event = k - item_offsets[n] - context[n]
                if event >= 0 and wanted[first + event]:
                    out[row] = had
                    row += 1
                if 0 <= items[k] < known:
                    had[items[k]] = True
        first += events
    return out
