"""Index versions of runs in memory, built from a checkpoint as the worker builds them."""

from dataclasses import replace
from pathlib import Path

import torch

from cluster.checkpoints.checkpoint import CheckpointStore, trusted_checkpoint
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.publishing.building import Questions, build_version
from cluster.queries.towers import new_towers
from cluster.training.state.run import TrainingRun
from retrieval.config import IndexConfig
from retrieval.versions.publish import PublishReport
from tests.support.checkpointing import save_checkpoint

EXHAUSTIVE = IndexConfig(kind="ivf_flat", nlist=1, nprobe=1, device="cpu")
"""One list of plain vectors: a search is an exact search."""


def publish_version(run: TrainingRun, storage: Path, index: IndexConfig = EXHAUSTIVE) -> FreshetConfig:
    """Collective. Make what a run has learned the live version of this storage; the settings that lead to it."""
    config = replace(run.config, index=index, storage_path=str(storage))
    assert publish_run(run, config).version is not None
    return config


def publish_run(run: TrainingRun, config: FreshetConfig) -> PublishReport:
    """Collective. Build a version of what a run has learned, under these settings."""
    comm = Collectives()
    checkpoint = save_checkpoint(run, CheckpointStore(config.checkpoint_location), comm)
    committed = comm.gather_objects(checkpoint.location if checkpoint is not None else None)[0]
    with torch.random.fork_rng():
        towers = new_towers(config, run.device)
    return build_version(comm, config, trusted_checkpoint(committed), Questions(), {}, model=towers)
