"""The systems that an evaluation compares, by name; ablations are CL-EPIDTN with settings forced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch

from cluster.config import FreshetConfig
from cluster.evaluation.overrides import did_you_mean, with_settings
from cluster.evaluation.trained import TrainedRecommender
from model.recommender import Int64Array, Recommender
from streaming.catalogue import Catalogue

REFERENCE = "cl_epidtn"
"""The system that the others are compared with."""

# What only CL-EPIDTN has. A search may give a baseline the ones that it can use.
_PLAIN = {
    "model.source_items": 0,
    "model.contrastive_weight": 0.0,
    "model.augmented_vectors": False,
    "model.input_mask_ratio": 0.0,
}
_ONE_PASS = {"fit.passes": 1, "fit.first_events": True}
_ALWAYS = (
    "protocol.",
    "stream.history_length",
    "stream.user_attributes",
    "stream.max_categories",
    "stream.positive_actions",
    "stream.action_weights",
    "stream.negative_actions",
    "stream.negative_below_value",
    "fit.first_events",
    "fit.validation_users",
)


@dataclass(frozen=True)
class System:
    """One row of a comparison."""

    name: str
    title: str
    source: str
    """`module:class`, imported when it is needed."""
    reads: tuple[str, ...]
    """Prefixes of the settings that its results depend on, beside those of data and protocol."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Instead of the configured values; a search may change them."""
    forced: Mapping[str, Any] = field(default_factory=dict)
    """What makes it this system; nothing changes them."""
    trained: bool = True
    """Many passes with decaying rates; the others read everything once."""

    @property
    def depends_on_seed(self) -> bool:
        """Whether two seeds can give different results."""
        return bool(self.reads)

    def settings_of(
        self, config: FreshetConfig, tuned: Mapping[str, Any], point: Mapping[str, Any]
    ) -> FreshetConfig:
        """The configuration of its cells: what was configured, what was tuned, the sweep's values, what is forced."""
        return with_settings(config, {**self.defaults, **tuned, **point, **self.forced})

    def influences(self, key: str) -> bool:
        """Whether its results depend on a setting."""
        return key.startswith((*_ALWAYS, *self.reads))


_TOWERS = ("model.", "fit.", "device")


def _towers(name: str, title: str, source: str) -> System:
    return System(name, title, f"model.baselines.{source}", _TOWERS, defaults=_PLAIN)


def _ablation(name: str, title: str, **forced: Any) -> System:
    return System(
        name,
        title,
        "model.cl_epidtn:CLEPIDTN",
        _TOWERS,
        forced={f"model.{key}": value for key, value in forced.items()},
    )


def _one_pass(name: str, title: str, source: str, *reads: str) -> System:
    return System(name, title, f"model.baselines.{source}", reads, forced=_ONE_PASS, trained=False)


SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        _ablation(REFERENCE, "CL-EPIDTN"),
        _ablation("epidtn", "EPIDTN", contrastive_weight=0.0),
        _ablation("cltd", "CLTD", augmented_vectors=False),
        _ablation("cl_dssm", "CL-DSSM", transformer=False, augmented_vectors=False),
        _one_pass("wals", "WALS", "wals:WALS", "wals.", "seed"),
        _towers("youtube_dnn", "YouTube DNN", "youtube_dnn:YouTubeDNN"),
        _towers("dssm", "DSSM", "dssm:DSSM"),
        _towers("mind", "MIND", "mind:MIND"),
        _towers("sasrec", "SASRec", "sasrec:SASRec"),
        _towers("sasrec_bce", "SASRec (BCE)", "sasrec:SASRecBCE"),
        _one_pass("popularity", "Popularity", "popularity:Popularity"),
        _one_pass("markov", "Markov", "markov:Markov"),
        _one_pass("cooccurrence", "Co-occurrence", "cooccurrence:Cooccurrence"),
    )
}


class UnknownSystem(ValueError):
    """A name that is no system's."""


def chosen(text: str) -> list[System]:
    """The systems of a list with commas, in its order; `all` are all.

    Raises:
        UnknownSystem: names the nearest one and all of them.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return list(SYSTEMS.values())
    for name in names:
        if name not in SYSTEMS:
            raise UnknownSystem(
                f"unknown model '{name}'{did_you_mean(name, SYSTEMS)}: choose of {', '.join(SYSTEMS)}, or all "
                "(option --models)"
            )
    if not names:
        raise UnknownSystem(f"no model is named: choose of {', '.join(SYSTEMS)}, or all (option --models)")
    return [SYSTEMS[name] for name in dict.fromkeys(names)]


def create(
    system: System,
    config: FreshetConfig,
    catalogue: Catalogue,
    item_ids: Int64Array,
    device: torch.device,
) -> Recommender:
    """A fresh one, initialised from `config.seed`.

    Args:
        system: which.
        config: as `System.settings_of` gives it.
        catalogue: categories and attributes.
        item_ids: int64 (I,), ascending: all items that are ranked.
        device: of the towers.
    """
    torch.manual_seed(config.seed)
    make = _imported(system.source)
    if system.trained:
        model = make(config.model, len(config.stream.user_attributes))
        return TrainedRecommender(model, catalogue, config, config.fit, device)
    recommender: Recommender = make(item_ids)
    return recommender


def _imported(source: str) -> Callable[..., Any]:
    module, _, name = source.partition(":")
    made: Callable[..., Any] = getattr(import_module(module), name)
    return made
