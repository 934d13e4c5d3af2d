"""Reads a trainer's `progress.json`, any part of which may still be missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from cluster.observability.figures import rows_set_aside, scalars


@dataclass(frozen=True)
class HitCurve:
    """Exact hit rates of the model in training and the two streaming baselines on the same sampled events.

    Entry b of each list counts the sample and its hits among the events trained from b * bin_events on.
    """

    bin_events: int = 1000
    sample: Sequence[int] = ()
    hits: Sequence[float] = ()
    popularity_hits: Sequence[float] = ()
    cooccurrence_hits: Sequence[float] = ()

    def rate(self, series: Sequence[float], from_event: float = 0) -> float:
        """Hits over sample of the bins that start at or after `from_event`; NaN without a sample."""
        first = math.ceil(from_event / self.bin_events)
        sample = self.sample_size(from_event)
        return sum(series[first:]) / sample if sample else math.nan

    def sample_size(self, from_event: float = 0) -> int:
        """Scored events in the bins that start at or after `from_event`."""
        return int(sum(self.sample[math.ceil(from_event / self.bin_events) :]))

    def points(self, series: Sequence[float], width: int) -> list[float]:
        """At most `width` hit rates along the stream, with neighbouring bins merged; NaN without a sample."""
        bins = min(len(self.sample), len(series))
        count = min(width, bins)
        edges = [round(i * bins / count) for i in range(count + 1)] if count else []
        return [_ratio(sum(series[a:b]), sum(self.sample[a:b])) for a, b in pairwise(edges)]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


@dataclass(frozen=True)
class ServedCurve(HitCurve):
    """Hit rates of the live version on sampled events, as their users got it."""

    version: str = ""
    """Which answered last; empty before the first answer."""
    dropped: int = 0
    """Sampled events that were not answered, to stay within the budget."""


@dataclass(frozen=True)
class Progress:
    """One reading of `progress.json`, as far as the screen uses it; the field names are the file's."""

    time_s: float = 0.0
    state: str = "starting"
    attempt: int = 0
    restarts: int = 0
    pids: Sequence[int] = ()
    step: int = 0
    workers: int = 0
    rows_read: int = 0
    events_trained: int = 0
    dead_letters: int = 0
    set_aside: Mapping[str, int] = field(default_factory=dict)
    """Counts, by label, of rows that were neither trained on nor dead letters."""
    lag_messages: int = 0
    lag_events: int | None = None
    """Approximate number of events that wait to be read; None before the run has reported it."""
    loss: Mapping[str, float] = field(default_factory=dict)
    examples_per_s: float = math.nan
    mean_examples_per_s: float = math.nan
    known_items: int = 0
    progressive: HitCurve = field(default_factory=HitCurve)
    served: ServedCurve = field(default_factory=ServedCurve)
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    index: Mapping[str, Any] = field(default_factory=dict)
    deltas: Mapping[str, Any] = field(default_factory=dict)
    freshness: Mapping[str, Any] = field(default_factory=dict)
    faults: Mapping[str, int] = field(default_factory=dict)
    """What was wrong with data in this attempt, by code."""
    error: str = ""
    notice: str = ""

    @property
    def index_version(self) -> int:
        """Number of the live index version; 0 before the first."""
        digits = "".join(c for c in str(self.index.get("version") or "") if c.isdigit())
        return int(digits) if digits else 0

    @property
    def index_versions(self) -> int:
        """Number of versions published so far (the file has the count or the list of names)."""
        versions = self.index.get("versions", 0)
        return len(versions) if isinstance(versions, list | tuple) else int(versions or 0)

    @property
    def checkpoint_step(self) -> int | None:
        """Step of the newest committed checkpoint; None before the first."""
        step = self.checkpoint.get("step")
        return None if step is None else int(step)


def parse_progress(record: Mapping[str, Any] | None) -> Progress:
    """A `Progress` from the parsed file; keys that are missing or null keep their defaults."""
    record = record or {}
    read = {name: value for name, value in scalars(record).items() if name in Progress.__dataclass_fields__}
    objects = ("loss", "checkpoint", "index", "deltas", "freshness", "faults")
    parts = {name: record[name] for name in objects if record.get(name)}
    return Progress(
        **read,
        **parts,
        set_aside=rows_set_aside(record),
        pids=tuple(record.get("pids") or ()),
        progressive=HitCurve(**_known(HitCurve, record.get("progressive") or {})),
        served=ServedCurve(**_known(ServedCurve, record.get("served") or {})),
    )


def _known(kind: type[HitCurve], said: Mapping[str, Any]) -> dict[str, Any]:
    return {name: said[name] for name in kind.__dataclass_fields__ if said.get(name) is not None}
