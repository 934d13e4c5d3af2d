"""Settings of a run, composed from the parts' own settings."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cluster.tables.config import TableConfig
from model.config import ModelConfig, Precision
from model.setting import require_declared, setting
from retrieval.config import IndexConfig
from streaming.config import StreamConfig
from streaming.local_broker.config import BrokerConfig

_WORKERS = re.compile(r"(-?\d+)(?:\.\.(-?\d+))?")


def worker_range(workers: int | str) -> tuple[int, int]:
    """The minimum and maximum number of workers that `train.workers` allows; equal if it is one number.

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

    workers: int | str = setting(
        2,
        "Number of Ray Train workers (one process per GPU or CPU share). A range, for example 1..3, adapts the "
        "number to the resources that the cluster has.",
    )
    resize_check_s: float = setting(
        60.0,
        "With a range of workers: how often to compare the workers with the cluster's resources.",
        above=0,
    )
    cpus_per_worker: float = setting(1.0, "CPUs that Ray reserves for each worker.", above=0)
    threads_per_worker: int = setting(1, "torch and OpenMP threads of each worker.", at_least=1)
    batch_events: int = setting(256, "Maximum number of events in a step, over all ranks.", at_least=1)
    linger_s: float = setting(0.25, "On a live topic: how long a step waits for a full batch.", at_least=0)
    bounded: bool = setting(
        False, "Stop at the end that the topic had when the run started, instead of waiting for new events."
    )
    stop_after_rows: int = setting(
        0, "Stop when this many rows have been read, counted over all runs (0 = never).", at_least=0
    )
    learning_rate: float = setting(1e-3, "Learning rate of the towers (AdamW).", above=0)
    row_learning_rate: float = setting(1e-2, "Learning rate of the embedding rows.", above=0)
    row_optimizer: Literal["adam", "adagrad"] = setting(
        "adam",
        "Optimizer of the embedding rows: row-wise Adam, or row-wise Adagrad with 4 bytes of state per row.",
    )
    weight_decay: float = setting(0.0, "Decoupled weight decay of the towers.", at_least=0)
    warmup_steps: int = setting(50, "Steps over which both learning rates rise linearly.", at_least=0)
    gradient_clip: float = setting(5.0, "Norm to which the towers' gradient is clipped (0 = off).")
    max_poison_batches: int = setting(
        3,
        "Number of consecutive steps that cannot be trained after which the run stops. If only a few events of a "
        "step are at fault, only those become dead letters, and the step does not count.",
        at_least=1,
    )
    init_from: str = setting(
        "",
        "Checkpoint, or folder of a run, whose learned state a new run starts from; it reads the stream from the "
        "beginning.",
    )
    checkpoint_every_s: float = setting(15.0, "Seconds between checkpoints.", above=0)
    checkpoints_to_keep: int = setting(
        3,
        "Number of checkpoints to keep. Older ones are removed after a commit, except those that a kept one depends "
        "on.",
        at_least=1,
    )
    checkpoint_full_every: int = setting(
        20,
        "Maximum number of deltas (changes since the previous checkpoint) between two full checkpoints "
        "(0 = no deltas).",
        at_least=0,
    )
    checkpoint_full_share: float = setting(
        0.5,
        "Write a full checkpoint earlier when the deltas exceed this share of the last full one's size.",
        at_least=0,
    )
    checkpoint_path: str = setting(
        "",
        "Folder or URI of the checkpoints (s3://bucket/prefix; credentials and AWS_ENDPOINT_URL come from the "
        "environment). Empty: storage_path/checkpoints.",
    )
    index_path: str = setting(
        "", "Folder or URI of the index versions, as train.checkpoint_path. Empty: storage_path/index."
    )
    publish_every_s: float = setting(
        10.0, "Seconds between index versions (0 = only at the end).", at_least=0
    )
    publish_in_thread_items: int = setting(
        50_000,
        "Number of items above which index versions are built by a process beside each worker, at a lower priority, "
        "instead of a thread in it.",
        at_least=0,
    )
    max_restarts: int = setting(
        3,
        "How often a lost worker group is restarted, counted again after each new checkpoint (0 = never).",
        at_least=0,
    )
    stop_within_s: float = setting(
        10.0,
        "How long a run may take to commit its last checkpoint after SIGTERM or Ctrl-C; after that it ends without "
        "one.",
        above=0,
    )
    storage_patience_s: float = setting(
        60.0,
        "How long the last checkpoint of a run waits for storage that is full or unreachable (after SIGTERM or "
        "Ctrl-C: at most a third of train.stop_within_s).",
        at_least=0,
    )
    collective_timeout_s: float = setting(
        120.0, "How long a rank waits for the other ranks before it gives up."
    )

    def __post_init__(self) -> None:
        """Check bounds and choices.

        Raises:
            ValueError: names the setting and its value.
        """
        worker_range(self.workers)
        require_declared("train", self)


@dataclass
class ProgressiveConfig:
    """Progressive validation: a hash sample of the events is scored before it is trained on."""

    sample_fraction: float = setting(
        0.2, "Share of the events that are scored first (0 = no validation).", at_least=0, at_most=1
    )
    exact_max_items: int = setting(
        20_000,
        "Number of items above which events are no longer ranked among all items, because it would cost more than "
        "training.",
        at_least=1,
    )
    served_cpu_share: float = setting(
        0.05,
        "CPU time that answering sampled events from the live index version may take, as a share of the training "
        "thread's (0 = not done). Events beyond it are dropped and counted.",
        at_least=0,
        at_most=1,
    )
    top_k: int = setting(10, "N of the hit rate HR@N.", at_least=1)
    bin_events: int = setting(
        1000, "Width of a point of the curve in trained events; it doubles at every 4096 points.", at_least=1
    )
    baselines: bool = setting(True, "Score streaming popularity and co-occurrence as well.")
    baseline_max_items: int = setting(
        20_000, "Number of items above which co-occurrence is no longer counted.", at_least=1
    )
    baseline_max_pairs: int = setting(
        4_000_000,
        "Number of pairs of items that occurred together above which co-occurrence is no longer counted. A pair "
        "takes about 40 bytes on each rank, which are freed once counting has stopped.",
        at_least=1,
    )

    def __post_init__(self) -> None:
        """Check bounds.

        Raises:
            ValueError: names the setting and its value.
        """
        require_declared("progressive", self)


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
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "Device of the towers and embedding rows; auto uses CUDA if it is available."
    )
    precision: Precision = setting(
        "fp32",
        "Precision of the towers' matrix products: fp32; tf32 (GPUs only, also when encoding); bf16 (only in "
        "training). Weights, losses and rows are float32 in every case.",
    )
    storage_path: str = setting("runs/freshet", "Folder for checkpoints, index versions and progress.json.")
    seed: int = setting(1, "Seed of everything that is random.")

    def __post_init__(self) -> None:
        """Check the settings that are in no section.

        Raises:
            ValueError: names the setting and its value.
        """
        require_declared("", self)
        if not self.storage_path.strip():
            raise ValueError(f"storage_path must name a folder, got {self.storage_path!r}")

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
