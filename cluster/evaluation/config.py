"""Settings of an evaluation: how a data set is split, and how the trained systems are fitted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cluster.config import FreshetConfig


@dataclass
class ProtocolConfig:
    """What is trained on, and what is to be predicted."""

    kind: Literal["leave_one_out", "temporal"] = field(
        default="leave_one_out", metadata={"help": "each user's last event, or everything after a date"}
    )
    shuffle_ties: bool = field(
        default=False,
        metadata={"help": "events of a user with one time in a drawn order, not in that of the file"},
    )
    exclude_seen: bool = field(default=True, metadata={"help": "items that the user has had are not ranked"})
    validation_from: str = field(
        default="0.8", metadata={"help": "temporal: a date, or the share of events that comes before"}
    )
    test_from: str = field(default="0.9", metadata={"help": "temporal: the same of the test"})
    targets: Literal["next", "day", "all"] = field(
        default="next", metadata={"help": "temporal: the next event, the next day with events, or all"}
    )
    min_history: int = field(
        default=1, metadata={"help": "temporal: events before the moment that make a user a query"}
    )
    walk_forward_days: int = field(
        default=0,
        metadata={
            "help": "temporal: predict so many days, train on them, go on with the next ones; 0: nothing after "
            "validation_from is trained on"
        },
    )
    test_at_once: bool = field(
        default=False,
        metadata={
            "help": "walk_forward_days: walk up to test_from only; one frozen model predicts all of the test"
        },
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the setting."""
        if self.min_history < 0:
            raise ValueError(f"protocol.min_history must not be negative, got {self.min_history}")
        if self.walk_forward_days < 0:
            raise ValueError(
                f"protocol.walk_forward_days must not be negative, got {self.walk_forward_days} (0 = off)"
            )
        if self.walk_forward_days and self.kind != "temporal":
            raise ValueError(
                f"protocol.walk_forward_days needs protocol.kind=temporal, got {self.kind}: leave-one-out has no days"
            )
        if self.test_at_once and not self.walk_forward_days:
            raise ValueError(
                "protocol.test_at_once needs protocol.walk_forward_days: without it, the test always is"
            )
        for name in ("validation_from", "test_from"):
            _require_moment(f"protocol.{name}", getattr(self, name))


def _require_moment(name: str, text: str) -> None:
    try:
        share = float(text)
    except ValueError:
        if not _is_date(text):
            raise ValueError(
                f"{name} must be a date (2001-02-01) or a share of the events (0.9), got {text!r}"
            ) from None
        return
    if not 0 < share < 1:
        raise ValueError(f"{name} as a share must be between 0 and 1, got {text!r}")


def _is_date(text: str) -> bool:
    try:
        return not bool(np.isnat(np.datetime64(text, "ms")))
    except ValueError:
        return False


@dataclass
class FitConfig:
    """How a trained system reads a data set."""

    passes: int = field(default=12, metadata={"help": "how often everything is read"})
    batch_targets: int = field(default=1500, metadata={"help": "events to predict in one step"})
    learning_rate: float = field(default=2.8e-3, metadata={"help": "of the towers (AdamW), at its highest"})
    row_learning_rate: float = field(default=1e-2, metadata={"help": "of the embedding rows, at its highest"})
    row_optimizer: Literal["adam", "adagrad"] = field(
        default="adam", metadata={"help": "row-wise Adam, or row-wise Adagrad"}
    )
    warmup_steps: int = field(default=200, metadata={"help": "linear warm-up of both learning rates"})
    schedule: Literal["cosine", "constant"] = field(
        default="cosine", metadata={"help": "cosine: to zero at the last step"}
    )
    weight_decay: float = field(default=0.0, metadata={"help": "decoupled, towers only"})
    gradient_clip: float = field(default=5.0, metadata={"help": "norm of the towers' gradient (0 = off)"})
    first_events: bool = field(
        default=False, metadata={"help": "whether a user's first event, without a history, is predicted too"}
    )
    validate_every: int = field(
        default=1, metadata={"help": "passes between validations; the best one is kept"}
    )
    patience: int = field(
        default=0, metadata={"help": "stop after so many validations without a better one (0 = never)"}
    )
    validation_users: int = field(
        default=10_000, metadata={"help": "at most so many users in a validation (0 = all)"}
    )
    walk_passes: int = field(
        default=2, metadata={"help": "protocol.walk_forward_days: how often each stretch is read"}
    )
    walk_rate: float = field(
        default=0.5, metadata={"help": "protocol.walk_forward_days: share of the learning rates, constant"}
    )
    threads: int = field(default=1, metadata={"help": "torch threads of a cell"})

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the setting."""
        for name in ("passes", "batch_targets", "validate_every", "walk_passes", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"fit.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "row_learning_rate", "walk_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"fit.{name} must be positive, got {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay", "gradient_clip", "patience", "validation_users"):
            if getattr(self, name) < 0:
                raise ValueError(f"fit.{name} must not be negative, got {getattr(self, name)}")


@dataclass
class WalsConfig:
    """The baseline WALS: implicit alternating least squares."""

    factors: int = field(default=128, metadata={"help": "columns of its vectors"})
    regularization: float = field(default=0.01, metadata={"help": "lambda, of the squared norms"})
    kappa: float = field(default=40.0, metadata={"help": "confidence of an event is 1 + kappa · its weight"})
    iterations: int = field(default=15, metadata={"help": "each solves all users, then all items"})

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the setting."""
        for name in ("factors", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"wals.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("regularization", "kappa"):
            if getattr(self, name) <= 0:
                raise ValueError(f"wals.{name} must be positive, got {getattr(self, name)}")


@dataclass
class PopularityConfig:
    """The floor popularity."""

    half_life_days: float = field(
        default=0.0, metadata={"help": "days after which an event counts half (0 = all count alike)"}
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the setting."""
        if self.half_life_days < 0:
            raise ValueError(
                f"popularity.half_life_days must not be negative, got {self.half_life_days:g} (0 = all count alike)"
            )


@dataclass
class OfflineConfig(FreshetConfig):
    """The settings of a run, and those of an evaluation on a data set at rest."""

    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    wals: WalsConfig = field(default_factory=WalsConfig)
    popularity: PopularityConfig = field(default_factory=PopularityConfig)
