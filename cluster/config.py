"""Settings of a run, composed from the parts' own settings."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from cluster.tables.config import TableConfig
from model.config import ModelConfig, Precision
from retrieval.config import IndexConfig
from streaming.config import StreamConfig
from streaming.local_broker.broker import BrokerConfig

_WORKERS = re.compile(r"(-?\d+)(?:\.\.(-?\d+))?")


def worker_range(workers: int | str) -> tuple[int, int]:
    """The fewest and the most workers that `train.workers` allows; twice the same where it is one number.

    Raises:
        ValueError: neither a number nor a range of numbers, less than 1, or a range that ends before it begins.
    """
    found = _WORKERS.fullmatch(str(workers))
    if found is None:
        raise ValueError(f"train.workers must be a number, or a range such as 1..3, got {workers!r}")
    fewest = int(found[1])
    most = int(found[2] or fewest)
    if fewest < 1:
        raise ValueError(f"train.workers must be at least 1, got {workers}")
    if most < fewest:
        raise ValueError(f"train.workers must go from fewest to most, such as 1..3, got {workers}")
    return fewest, most


@dataclass
class TrainConfig:
    """How the stream is trained: workers, batches, optimizers, checkpoints."""

    workers: int | str = field(
        default=2,
        metadata={
            "help": "Ray Train workers (one process per GPU or CPU share); a range, for example 1..3, follows the room "
            "that the cluster has"
        },
    )
    resize_check_s: float = field(
        default=60.0,
        metadata={
            "help": "with a range of workers, how often a group that runs well is held against the cluster's room"
        },
    )
    cpus_per_worker: float = field(default=1.0, metadata={"help": "CPUs that Ray reserves for each worker"})
    threads_per_worker: int = field(default=1, metadata={"help": "torch and OpenMP threads of each worker"})
    batch_events: int = field(
        default=256, metadata={"help": "most events of one global step, all ranks together"}
    )
    linger_s: float = field(
        default=0.25, metadata={"help": "on a live topic, how long a step waits for a full batch"}
    )
    bounded: bool = field(
        default=False,
        metadata={"help": "stop at the topic's end as of the start instead of waiting for more"},
    )
    stop_after_rows: int = field(
        default=0, metadata={"help": "stop when this many rows have been read, over all runs (0 = never)"}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "of the towers (AdamW)"})
    row_learning_rate: float = field(default=1e-2, metadata={"help": "of the embedding rows"})
    row_optimizer: Literal["adam", "adagrad"] = field(
        default="adam", metadata={"help": "row-wise Adam, or row-wise Adagrad with 4 bytes of state per row"}
    )
    weight_decay: float = field(default=0.0, metadata={"help": "decoupled, towers only"})
    warmup_steps: int = field(default=50, metadata={"help": "linear warm-up of both learning rates"})
    gradient_clip: float = field(
        default=5.0, metadata={"help": "norm that the towers' gradient is clipped to (0 = off)"}
    )
    max_poison_batches: int = field(
        default=3,
        metadata={
            "help": "so many steps one after another that cannot be trained stop the run; where only a few events of a "
            "step are at fault, these alone go to the dead letters and the step does not count"
        },
    )
    init_from: str = field(
        default="",
        metadata={
            "help": "a checkpoint, or a run's folder: a new run starts from what was learned there, the stream anew"
        },
    )
    checkpoint_every_s: float = field(default=15.0, metadata={"help": "seconds between checkpoints"})
    checkpoints_to_keep: int = field(
        default=3,
        metadata={
            "help": "older ones are deleted after a commit, except those that a retained one depends on"
        },
    )
    checkpoint_full_every: int = field(
        default=20,
        metadata={
            "help": "most deltas (what changed since the last checkpoint) between two full ones (0 = no deltas)"
        },
    )
    checkpoint_full_share: float = field(
        default=0.5,
        metadata={
            "help": "a full checkpoint comes earlier when the deltas exceed this share of the last one's bytes"
        },
    )
    checkpoint_path: str = field(
        default="",
        metadata={
            "help": "folder or URI (s3://bucket/prefix; credentials and AWS_ENDPOINT_URL from the environment); "
            "empty: storage_path/checkpoints"
        },
    )
    index_path: str = field(
        default="",
        metadata={
            "help": "folder or URI of the index versions, like train.checkpoint_path; empty: storage_path/index"
        },
    )
    publish_every_s: float = field(
        default=10.0, metadata={"help": "seconds between index versions (0 = only at the end)"}
    )
    max_restarts: int = field(
        default=3,
        metadata={
            "help": "how often a lost worker group is started again, counted anew after each new checkpoint; 0: never"
        },
    )
    stop_within_s: float = field(
        default=10.0,
        metadata={
            "help": "after SIGTERM or Ctrl-C, how long a run may take to commit its last checkpoint and end; then it "
            "ends without"
        },
    )
    storage_patience_s: float = field(
        default=60.0,
        metadata={
            "help": "how long the last checkpoint of a run waits for a storage that is full or away (after SIGTERM or "
            "Ctrl-C: a third of train.stop_within_s at most)"
        },
    )
    collective_timeout_s: float = field(
        default=120.0, metadata={"help": "after this a rank gives up waiting for the others"}
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the setting."""
        worker_range(self.workers)
        for name in (
            "threads_per_worker",
            "batch_events",
            "checkpoints_to_keep",
            "max_poison_batches",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "cpus_per_worker",
            "learning_rate",
            "row_learning_rate",
            "checkpoint_every_s",
            "resize_check_s",
            "stop_within_s",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"train.{name} must be positive, got {getattr(self, name)}")
        for name in (
            "linger_s",
            "stop_after_rows",
            "weight_decay",
            "warmup_steps",
            "publish_every_s",
            "max_restarts",
            "checkpoint_full_every",
            "checkpoint_full_share",
            "storage_patience_s",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} must not be negative, got {getattr(self, name)}")


@dataclass
class ProgressiveConfig:
    """Progressive validation: a hash sample of events is scored before it is trained on."""

    sample_fraction: float = field(
        default=0.2, metadata={"help": "share of the events that are scored first (0 = no validation)"}
    )
    exact_max_items: int = field(
        default=20_000,
        metadata={
            "help": "with more items than this, events are not ranked among all of them any more: it would cost more "
            "than training"
        },
    )
    top_k: int = field(default=10, metadata={"help": "N of HR@N"})
    bin_events: int = field(
        default=1000,
        metadata={
            "help": "width, in trained events, of a point of the curve; it doubles at every 4096 points"
        },
    )
    baselines: bool = field(
        default=True, metadata={"help": "score streaming popularity and co-occurrence beside it"}
    )
    baseline_max_items: int = field(
        default=20_000, metadata={"help": "with more items than this co-occurrence is no longer counted"}
    )
    baseline_max_pairs: int = field(
        default=4_000_000,
        metadata={
            "help": "nor with more pairs of items that came together than this: a pair takes about 40 bytes on each "
            "rank, which are free again once counting has stopped"
        },
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the setting."""
        if not 0.0 <= self.sample_fraction <= 1.0:
            raise ValueError(f"progressive.sample_fraction must be in [0, 1], got {self.sample_fraction}")
        for name in ("exact_max_items", "top_k", "bin_events", "baseline_max_items", "baseline_max_pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"progressive.{name} must be at least 1, got {getattr(self, name)}")


@dataclass
class FreshetConfig:
    """All settings of a run; those of an offline evaluation extend them (`cluster/evaluation/config.py`)."""

    stream: StreamConfig = field(default_factory=StreamConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    table: TableConfig = field(default_factory=TableConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    progressive: ProgressiveConfig = field(default_factory=ProgressiveConfig)
    broker: BrokerConfig = field(default_factory=BrokerConfig)
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata={"help": "cpu, cuda, or auto"})
    precision: Precision = field(
        default="fp32",
        metadata={
            "help": "the towers' matrix products: fp32; tf32 (GPUs only, encoding included); bf16 (training only); "
            "weights, losses and rows are float32 in all three"
        },
    )
    storage_path: str = field(
        default="runs/freshet", metadata={"help": "folder of checkpoints, index versions and progress"}
    )
    seed: int = field(default=1, metadata={"help": "of everything that is random"})

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the setting."""
        if not self.storage_path.strip():
            raise ValueError(f"storage_path must name a folder, got {self.storage_path!r}")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision must be fp32, tf32 or bf16, got {self.precision!r}")

    @property
    def checkpoint_location(self) -> str:
        """Where checkpoints lie: `train.checkpoint_path`, or a folder in `storage_path`."""
        return self.train.checkpoint_path or self._own_checkpoints

    @property
    def index_location(self) -> str:
        """Where index versions lie: `train.index_path`, or a folder in `storage_path`."""
        return self.train.index_path or str(Path(self.storage_path) / "index")

    @property
    def claimed_locations(self) -> list[str]:
        """Where a run's claims lie: for what it writes into `storage_path`, and where checkpoints and versions are."""
        elsewhere = [self.train.index_path] if self.train.index_path else []
        return list(dict.fromkeys([self._own_checkpoints, self.checkpoint_location, *elsewhere]))

    @property
    def _own_checkpoints(self) -> str:
        return str(Path(self.storage_path) / "checkpoints")
