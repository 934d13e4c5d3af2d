"""The systems that an evaluation compares, by name; ablations are CL-EPIDTN with forced settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.systems.overrides import with_settings
from cluster.setting_names import did_you_mean
from model.baselines.extra import evaluation_package
from model.retrieval_model import RetrievalModel
from streaming.arrays import Int64Array

if TYPE_CHECKING:
    # Not imported, so that names and settings are checked quickly.
    import torch

    from streaming.catalogue.catalogue import Catalogue

REFERENCE = "cl_epidtn"
"""The system that the others are compared with."""

# Settings that only CL-EPIDTN has, and L, its number of blocks. A search may set those that a baseline can use.
_PLAIN = {
    "model.layers": 2,
    "model.source_items": 0,
    "model.contrastive_weight": 0.0,
    "model.augmented_vectors": False,
    "model.input_mask_ratio": 0.0,
    "model.members": 1,
}
# The similarity in each baseline's own paper; cosine has the temperature of the reconstruction (docs/model.md).
_DOT = {"model.similarity": "dot", "model.temperature": 1.0}
_COSINE = {"model.similarity": "cosine", "model.temperature": 0.07}
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
    """Prefixes of the settings that its results depend on, besides those of data and protocol."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Override the configured values; a search may change them."""
    forced: Mapping[str, Any] = field(default_factory=dict)
    """Define the system; nothing changes them."""
    trained: bool = True
    """Whether it takes many passes with decaying rates; other systems read everything once."""
    packages: tuple[str, ...] = ()
    """Packages of the extra `evaluation` that it needs."""

    @property
    def depends_on_seed(self) -> bool:
        """Whether two seeds can give different results."""
        return self.trained or "seed" in self.reads

    def settings_of(
        self, config: OfflineConfig, tuned: Mapping[str, Any], point: Mapping[str, Any]
    ) -> OfflineConfig:
        """The configuration of its cells: configured, tuned, swept, and forced values, in this order."""
        return with_settings(config, {**self.defaults, **tuned, **point, **self.forced})

    def influences(self, key: str) -> bool:
        """Whether its results depend on a setting."""
        return key.startswith((*_ALWAYS, *self.reads))


_TOWERS = ("model.", "fit.", "device", "precision")


def _towers(
    name: str, title: str, source: str, defaults: Mapping[str, Any], forced: Mapping[str, Any] | None = None
) -> System:
    source = f"model.baselines.{source}"
    return System(name, title, source, _TOWERS, {**_PLAIN, **defaults}, forced or {})


def _ablation(name: str, title: str, defaults: Mapping[str, Any] | None = None, **forced: Any) -> System:
    return System(
        name,
        title,
        "model.cl_epidtn:CLEPIDTN",
        _TOWERS,
        defaults or {},
        {f"model.{key}": value for key, value in forced.items()},
    )


def _one_pass(
    name: str, title: str, source: str, packages: tuple[str, ...] = (), reads: tuple[str, ...] = ()
) -> System:
    source = f"model.baselines.{source}"
    return System(name, title, source, reads, forced=_ONE_PASS, trained=False, packages=packages)


SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        _ablation(REFERENCE, "CL-EPIDTN"),
        _ablation("epidtn", "EPIDTN", contrastive_weight=0.0),
        _ablation("cltd", "CLTD", augmented_vectors=False),
        # The paper does not say whether it has augmented vectors; a sweep reports both (docs/model.md).
        _ablation("cl_dssm", "CL-DSSM", {"model.augmented_vectors": False}, transformer=False),
        _one_pass("wals", "WALS", "wals:WALS", ("implicit", "scipy.sparse"), ("wals.", "seed")),
        _towers("youtube_dnn", "YouTube DNN", "youtube_dnn:YouTubeDNN", _DOT),
        _towers("dssm", "DSSM", "dssm:DSSM", _COSINE),
        # The maximum of several inner products is not the sum of the members' maxima.
        _towers("mind", "MIND", "mind:MIND", _DOT, {"model.members": 1}),
        _towers("sasrec", "SASRec", "sasrec:SASRec", _DOT),
        # Its single negative is drawn from the step's uniform ones.
        _towers("sasrec_bce", "SASRec (BCE)", "sasrec:SASRecBCE", {**_DOT, "model.uniform_negatives": 1000}),
        _one_pass("popularity", "Popularity", "popularity:Popularity", reads=("popularity.",)),
        _one_pass("markov", "Markov", "markov:Markov", ("scipy.sparse",)),
        _one_pass("cooccurrence", "Co-occurrence", "cooccurrence:Cooccurrence", ("scipy.sparse",)),
    )
}


class UnknownSystem(ValueError):
    """An unknown system's name."""


def chosen(text: str) -> list[System]:
    """The systems in a comma-separated list, in its order; `all` selects all.

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
    config: OfflineConfig,
    catalogue: Catalogue,
    item_ids: Int64Array,
    device: torch.device,
) -> RetrievalModel:
    """A new recommender, initialised from `config.seed`.

    Args:
        system: its system.
        config: from `System.settings_of`.
        catalogue: categories and attributes.
        item_ids: int64 (I,), ascending: all items that are ranked.
        device: of the towers.
    """
    import torch

    from cluster.evaluation.systems.trained import TrainedRecommender
    from model.ensemble import with_members

    torch.manual_seed(config.seed)
    make = _imported(system.source)
    if system.trained:
        attributes = len(config.stream.user_attributes)
        model = with_members(config.model, lambda own: make(own, attributes))
        return TrainedRecommender(model, catalogue, config, config.fit, device)
    extra: dict[str, Any] = {}
    if system.name == "wals":
        extra = {**asdict(config.wals), "threads": config.fit.threads, "seed": config.seed}
    if system.name == "popularity":
        extra = asdict(config.popularity)
    recommender: RetrievalModel = make(item_ids, **extra)
    return recommender


def require_packages(systems: Iterable[System]) -> None:
    """Check before training that the packages that the systems import are installed.

    Raises:
        MissingPackage: names the extra to install.
    """
    for system in systems:
        _imported(system.source)
        for name in system.packages:
            evaluation_package(name)


def _imported(source: str) -> Callable[..., Any]:
    module, _, name = source.partition(":")
    made: Callable[..., Any] = getattr(import_module(module), name)
    return made
