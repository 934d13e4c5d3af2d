"""The demo's figures, and checks that they are those of a working loop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from deploy.screen.progress import Progress

MIN_INDEX_VERSIONS = 3

_COUNTS = (
    "events_in_topic",
    "events_trained",
    "events_negative",
    "events_ignored",
    "events_lost",
    "events_doubled",
    "dead_letters",
)


@dataclass
class DemoFigures:
    """Every figure of a run; the field names are those of the JSON file.

    Every event produced is trained, negative, ignored or a dead letter; lost and doubled count all but the
    last. The progressive figures are of the second half of the trained events: HR@10 of the events in a
    hash sample, each scored against all known items before it was trained on. The served ones are of the same half: by
    the live version, as users got it.
    """

    broker: str = "apache-kafka"
    events_produced: int = 0
    events_in_topic: int = 0
    events_trained: int = 0
    events_negative: int = 0
    events_ignored: int = 0
    events_lost: int = 0
    events_doubled: int = 0
    dead_letters: int = 0
    hash_equal: bool | None = None
    steps: int = 0
    workers: int = 0
    examples_per_s: float = math.nan
    progressive_hr10: float = math.nan
    popularity_hr10: float = math.nan
    cooccurrence_hr10: float = math.nan
    progressive_sample: int = 0
    served_hr10: float = math.nan
    served_sample: int = 0
    served_dropped: int = 0
    loss: dict[str, float] = field(default_factory=dict)
    known_items: int = 0
    index_versions: int = 0
    index_kind: str = ""
    index_nlist: int = 0
    index_nprobe: int = 0
    index_recall: float = math.nan
    index_items: int = 0
    freshness_p50_s: float = math.nan
    freshness_p99_s: float = math.nan
    deltas: int = 0
    delta_freshness_p50_s: float = math.nan
    delta_freshness_p99_s: float = math.nan
    new_items: int = 0
    new_items_recommended: int = 0
    new_item_p50_s: float = math.nan
    new_item_max_s: float = math.nan
    checkpoint_step: int | None = None
    restarts: int = 0
    chaos: bool = False
    killed_pid: int | None = None
    stream_s: float = math.nan
    wall_s: float = math.nan
    run_dir: str = ""
    recommendations: list[dict[str, Any]] = field(default_factory=list)
    progressive_curve: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    ok: bool = False

    def take_progress(self, progress: Progress) -> None:
        """Fill in what the trainer said last."""
        curve, index = progress.progressive, progress.index
        half = progress.events_trained / 2
        self.steps, self.workers, self.restarts = progress.step, progress.workers, progress.restarts
        self.examples_per_s, self.known_items = progress.mean_examples_per_s, progress.known_items
        self.loss = dict(progress.loss)
        self.progressive_hr10 = curve.rate(curve.hits, half)
        self.popularity_hr10 = curve.rate(curve.popularity_hits, half)
        self.cooccurrence_hr10 = curve.rate(curve.cooccurrence_hits, half)
        self.progressive_sample = curve.sample_size(half)
        self.progressive_curve = asdict(curve)
        served = progress.served
        self.served_hr10, self.served_sample = served.rate(served.hits, half), served.sample_size(half)
        self.served_dropped = served.dropped
        self.index_versions, self.index_kind = progress.index_versions, str(index.get("kind") or "")
        self.index_nlist, self.index_nprobe = int(index.get("nlist") or 0), int(index.get("nprobe") or 0)
        self.index_recall, self.index_items = _known(index.get("recall")), int(index.get("items") or 0)
        self.freshness_p50_s = _known(progress.freshness.get("run_p50_s"))
        self.freshness_p99_s = _known(progress.freshness.get("run_p99_s"))
        self.deltas = int(progress.deltas.get("published") or 0)
        self.delta_freshness_p50_s = _known(progress.deltas.get("run_p50_s"))
        self.delta_freshness_p99_s = _known(progress.deltas.get("run_p99_s"))
        self.checkpoint_step = progress.checkpoint_step

    def take_new_items(self, count: int, seconds: Sequence[float]) -> None:
        """Fill in how long items that appeared in the stream took until they could be recommended.

        Args:
            count: how many were to appear.
            seconds: of each that can be recommended.
        """
        self.new_items, self.new_items_recommended = count, len(seconds)
        if seconds:
            self.new_item_p50_s, self.new_item_max_s = median(seconds), max(seconds)

    def take_accounting(self, accounting: Mapping[str, Any]) -> None:
        """Fill in the count over the topic, the source of truth about trained events."""
        for name in _COUNTS:
            setattr(self, name, int(accounting[name]))
        self.hash_equal = accounting.get("hash_equal")

    def judge(self) -> None:
        """Set `problems` (figures that a working loop would not have) and `ok`."""
        used = self.events_trained + self.events_negative + self.events_ignored
        checks = [
            (
                used + self.dead_letters == self.events_produced,
                f"{used:,} of {self.events_produced:,} produced events were trained"
                + (" or set aside" if used > self.events_trained else ""),
            ),
            (self.events_lost == 0, f"{self.events_lost:,} events were lost"),
            (self.events_doubled == 0, f"{self.events_doubled:,} events were trained twice"),
            (self.hash_equal is not False, "the hash-sum of the trained positions is not the topic's"),
            (
                self.index_versions >= MIN_INDEX_VERSIONS,
                f"{self.index_versions} index versions were published, at least {MIN_INDEX_VERSIONS} are due "
                "(setting: train.publish_every_s)",
            ),
            (
                not self.chaos or self.killed_pid is not None,
                "no worker was killed: the run ended before its first checkpoint "
                "(setting: train.checkpoint_every_s)",
            ),
            (not self.chaos or self.restarts >= 1, "a worker was killed, but nothing restarted"),
        ]
        self.problems = [problem for holds, problem in checks if not holds]
        self.ok = not self.problems


def _known(value: Any) -> float:
    return math.nan if value is None else float(value)
