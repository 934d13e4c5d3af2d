"""Index versions of runs in memory, published as the worker publishes them."""

from dataclasses import replace
from pathlib import Path

from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.publishing.publisher import Publisher
from cluster.training.state.run import TrainingRun
from retrieval.config import IndexConfig

EXHAUSTIVE = IndexConfig(kind="ivf_flat", nlist=1, nprobe=1, device="cpu")
"""One list of plain vectors: a search is an exact search."""


def publish_version(run: TrainingRun, storage: Path, index: IndexConfig = EXHAUSTIVE) -> FreshetConfig:
    """Make what a run of one rank has learned the live version of this storage; the settings that lead to it."""
    config = replace(run.config, index=index, storage_path=str(storage))
    publisher = Publisher(Collectives(), config)
    metadata: dict[str, object] = {"step": run.step, "known_items": run.catalogue.item_count}
    snapshot = publisher.snapshot(run.model, run.table, run.catalogue, [], metadata)
    assert snapshot is not None
    assert publisher.build(snapshot).version is not None
    return config
