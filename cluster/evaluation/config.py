"""Settings of an evaluation: how a data set is split, and how the trained systems are fitted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cluster.config import FreshetConfig
from model.setting import require_declared, setting


@dataclass
class ProtocolConfig:
    """How a data set is split: what is trained on, and what is predicted."""

    kind: Literal["leave_one_out", "temporal"] = setting(
        "leave_one_out", "What is predicted: each user's last event, or everything after a date."
    )
    shuffle_ties: bool = setting(
        False, "Draw the order of a user's events that have equal times, instead of keeping that of the file."
    )
    exclude_seen: bool = setting(True, "Do not rank items that the user already has.")
    validation_from: str = setting(
        "0.8", "temporal: start of the validation, as a date or as the share of the events before it."
    )
    test_from: str = setting(
        "0.9", "temporal: start of the test, as a date or as the share of the events before it."
    )
    targets: Literal["next", "day", "all"] = setting(
        "next", "temporal: predict the next event, the next day with events, or all events."
    )
    min_history: int = setting(
        1, "temporal: minimum number of a user's events before the query for the query to count.", at_least=0
    )
    walk_forward_days: int = setting(
        0,
        "temporal: predict this many days, train on them, and continue with the next ones (0 = off: nothing after "
        "validation_from is trained on).",
        at_least=0,
    )
    test_at_once: bool = setting(
        False, "With walk_forward_days: walk only up to test_from; one frozen model predicts the whole test."
    )

    def __post_init__(self) -> None:
        """Check bounds, choices, dates, and settings that need one another.

        Raises:
            ValueError: names the setting and its value.
        """
        require_declared("protocol", self)
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
    """How trained systems are fitted to a data set."""

    passes: int = setting(12, "How often the training events are read.", at_least=1)
    batch_targets: int = setting(1500, "Events to predict in one step.", at_least=1)
    learning_rate: float = setting(2.8e-3, "Highest learning rate of the towers (AdamW).", above=0)
    row_learning_rate: float = setting(1e-2, "Highest learning rate of the embedding rows.", above=0)
    row_optimizer: Literal["adam", "adagrad"] = setting(
        "adam", "Optimizer of the embedding rows: row-wise Adam or row-wise Adagrad."
    )
    warmup_steps: int = setting(200, "Steps over which both learning rates rise linearly.", at_least=0)
    schedule: Literal["cosine", "constant"] = setting(
        "cosine", "Learning rates after the warm-up; cosine decays them to zero at the last step."
    )
    weight_decay: float = setting(0.0, "Decoupled weight decay of the towers.", at_least=0)
    gradient_clip: float = setting(
        5.0, "Norm to which the towers' gradient is clipped (0 = off).", at_least=0
    )
    first_events: bool = setting(False, "Also predict each user's first event, which has no history.")
    validate_every: int = setting(1, "Passes between validations; the best pass is kept.", at_least=1)
    patience: int = setting(
        0, "Stop after this many validations without an improvement (0 = never).", at_least=0
    )
    validation_users: int = setting(10_000, "Maximum number of users in a validation (0 = all).", at_least=0)
    walk_passes: int = setting(
        2, "With protocol.walk_forward_days: how often each stretch of days is read.", at_least=1
    )
    walk_rate: float = setting(
        0.5, "With protocol.walk_forward_days: share of the learning rates, which stay constant.", above=0
    )
    threads: int = setting(1, "torch threads of a cell.", at_least=1)

    def __post_init__(self) -> None:
        """Check bounds and choices.

        Raises:
            ValueError: names the setting and its value.
        """
        require_declared("fit", self)


@dataclass
class WalsConfig:
    """The baseline WALS: implicit alternating least squares."""

    factors: int = setting(128, "Width of its vectors.", at_least=1)
    regularization: float = setting(0.01, "λ: weight of the squared norms.", above=0)
    kappa: float = setting(40.0, "Confidence of an event is 1 + kappa times its weight.", above=0)
    iterations: int = setting(15, "Iterations; each solves all users, then all items.", at_least=1)

    def __post_init__(self) -> None:
        """Check bounds.

        Raises:
            ValueError: names the setting and its value.
        """
        require_declared("wals", self)


@dataclass
class PopularityConfig:
    """The baseline popularity."""

    half_life_days: float = setting(
        0.0, "Days after which an event counts half (0 = all events count the same).", at_least=0
    )

    def __post_init__(self) -> None:
        """Check bounds.

        Raises:
            ValueError: names the setting and its value.
        """
        require_declared("popularity", self)


@dataclass
class OfflineConfig(FreshetConfig):
    """The settings of a run, and those of an evaluation on a data set at rest."""

    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    wals: WalsConfig = field(default_factory=WalsConfig)
    popularity: PopularityConfig = field(default_factory=PopularityConfig)
