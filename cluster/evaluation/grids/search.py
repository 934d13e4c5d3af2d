"""Random search: every system gets the same number of trials, which use the validation queries and never the test."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cluster.evaluation.config import OfflineConfig
from cluster.evaluation.grids.cell import Cell
from cluster.evaluation.grids.grid import GridOutcome, cell_of
from cluster.evaluation.systems.systems import System

Choice = Mapping[str, Any]
"""Settings that are drawn together."""
Space = tuple[tuple[Choice, ...], ...]
"""One choice is drawn in each dimension. model.dim is not searched, because it must be equal for all systems."""


def _each(key: str, *values: Any) -> tuple[Choice, ...]:
    return tuple({key: value} for value in values)


_RATES = tuple(
    {"fit.learning_rate": towers, "fit.row_learning_rate": rows}
    for towers, rows in ((1e-3, 1e-2), (2.8e-3, 2.8e-3), (2.8e-3, 1e-2), (2.8e-3, 2e-2))
)
_SIMILARITIES = (
    {"model.similarity": "dot", "model.temperature": 1.0},
    *({"model.similarity": "cosine", "model.temperature": t} for t in (0.05, 0.07, 0.1)),
)
_DROPOUTS = _each("model.dropout", 0.1, 0.2, 0.3, 0.5)
_NEGATIVES = _each("model.uniform_negatives", 250, 1000, 2000)
_LAYERS = _each("model.layers", 1, 2, 3)
_MEMBERS = _each("model.members", 1, 2)
_USER_IDS = _each("model.user_id_embedding", False, True)
_INPUT_MASKS = _each("model.input_mask_ratio", 0.0, 0.15, 0.3)
_SOURCES = (
    {"model.source_items": 0},
    {"model.source_items": 3, "model.source_gain": 1.0, "model.source_decay": 0.7},
    {"model.source_items": 20, "model.source_gain": 2.0, "model.source_decay": 0.9},
)
_MIMICS = tuple({"model.mimic_user_weight": w, "model.mimic_item_weight": w} for w in (0.1, 0.3, 1.0))
_CONTRASTS = _each("model.contrastive_weight", 0.01, 0.02, 0.05, 0.1)
_CONTRAST_TEMPERATURES = _each("model.contrastive_temperature", 0.1, 0.5)

_TRAINED = (_RATES, _SIMILARITIES, _DROPOUTS)
_TWO_TOWERS = (*_TRAINED, _NEGATIVES, _LAYERS, _USER_IDS)
_OURS = (*_TWO_TOWERS, _MEMBERS, _INPUT_MASKS, _SOURCES)

SPACES: dict[str, Space] = {
    "cl_epidtn": (*_OURS, _MIMICS, _CONTRASTS, _CONTRAST_TEMPERATURES),
    "epidtn": (*_OURS, _MIMICS),
    "cltd": (*_OURS, _CONTRASTS, _CONTRAST_TEMPERATURES),
    # Without a transformer there are no layers.
    "cl_dssm": (
        *_TRAINED,
        _NEGATIVES,
        _USER_IDS,
        _MEMBERS,
        _INPUT_MASKS,
        _SOURCES,
        _CONTRASTS,
        _CONTRAST_TEMPERATURES,
    ),
    "youtube_dnn": (*_TWO_TOWERS, _MEMBERS),
    "dssm": (*_TWO_TOWERS, _MEMBERS),
    "mind": _TWO_TOWERS,
    "sasrec": (*_TRAINED, _NEGATIVES, _LAYERS, _MEMBERS),
    # Losses of single pairs need the probabilities of a dot product.
    "sasrec_bce": (_RATES, _DROPOUTS, _LAYERS, _MEMBERS),
    "wals": (
        _each("wals.factors", 32, 64, 128),
        _each("wals.regularization", 0.01, 0.1, 1.0, 10.0, 100.0),
        _each("wals.kappa", 1.0, 5.0, 10.0, 40.0, 100.0),
    ),
}
"""By system; missing systems have nothing to search."""


def trial_cells(
    system: System,
    config: OfflineConfig,
    fingerprint: str,
    trials: int,
    *,
    start: Mapping[str, Any],
    fixed: Collection[str] = (),
) -> list[tuple[Cell, dict[str, Any]]]:
    """Trials of one system with the settings that each adds: first none, then distinct draws.

    Args:
        system: whose space is drawn from.
        config: its seed is used for the trials and the draws.
        fingerprint: of the data set.
        trials: number of trials; fewer if the space is smaller.
        start: tuned settings, which drawn ones override.
        fixed: settings that are not changed; settings drawn together with one of them are not drawn.
    """
    space = [choices for choices in SPACES.get(system.name, ()) if not _keys(choices) & set(fixed)]
    found: dict[str, tuple[Cell, dict[str, Any]]] = {}
    for drawn in ({}, *_draws(space, system.name, config.seed)):
        settings = {**start, **drawn}
        number = len(found) + 1
        cell = cell_of(system, config.seed, config, fingerprint, tuned=settings, trial=number)
        found.setdefault(cell.key, (cell, settings))
        if len(found) == trials:
            break
    return list(found.values())


def best_settings(
    trials: Sequence[tuple[Cell, dict[str, Any]]], outcome: GridOutcome
) -> dict[str, Any] | None:
    """The settings of the trial with the highest validation HR@10, the first one in a tie; None if all failed."""
    best, highest = None, -math.inf
    for cell, settings in trials:
        result = outcome.of(cell)
        if result is not None and result.validation > highest:
            best, highest = settings, result.validation
    return best


def _keys(choices: Sequence[Choice]) -> set[str]:
    return {key for choice in choices for key in choice}


def _draws(space: Sequence[Sequence[Choice]], name: str, seed: int) -> Iterator[dict[str, Any]]:
    """All combinations, in an order drawn from the seed and the system's name."""
    if not space:
        return
    name_seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    rng = np.random.default_rng([seed, name_seed])
    for number in rng.permutation(math.prod(len(choices) for choices in space)).tolist():
        drawn: dict[str, Any] = {}
        for choices in space:
            number, chosen = divmod(number, len(choices))
            drawn |= choices[chosen]
        yield drawn
