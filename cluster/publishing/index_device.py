"""Chooses where an index version is built: on a GPU if the settings, Faiss and free memory allow it."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from cluster.config import FreshetConfig
from cluster.device import resolve_device
from retrieval.config import IndexConfig
from retrieval.gpu import bytes_needed, require_gpu, visible_gpus

_log = logging.getLogger(__name__)


def index_settings(config: FreshetConfig) -> IndexConfig:
    """The index's settings with `index.device=auto` resolved: the towers' device, unless Faiss has no GPU."""
    if config.index.device != "auto":
        return config.index
    towers = resolve_device(config.device)
    if towers.type != "cuda":
        return replace(config.index, device="cpu")
    if visible_gpus() == 0:
        _log.info(
            "the towers are on a GPU, but this Faiss has none (faiss-gpu has): the index is built on the CPU"
        )
        return replace(config.index, device="cpu")
    return replace(config.index, device="cuda", gpu=towers.index or 0)


def with_room(config: IndexConfig, items: int, dim: int) -> IndexConfig:
    """The same settings, or the CPU if a GPU, which training uses meanwhile, has too little free memory.

    Raises:
        IndexDeviceError: Faiss does not have the GPUs that the settings ask for.
    """
    if config.device != "cuda":
        return config
    for card in config.cards():
        require_gpu(card)
    needed = bytes_needed(items, dim, config.kind, config.gpus)
    free, card = min((torch.cuda.mem_get_info(card)[0], card) for card in config.cards())
    if needed <= free:
        return config
    _log.warning(
        "an index of %d items needs %.1f GB of GPU %d, which has %.1f GB free: it is built on the CPU "
        "(setting: index.device)",
        *(items, needed / 1e9, card, free / 1e9),
    )
    return replace(config, device="cpu")
