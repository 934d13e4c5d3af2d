"""Index versions of runs in memory, built from a checkpoint as the worker builds them."""

from dataclasses import replace
from pathlib import Path

import torch

from cluster.checkpoints.checkpoint import CheckpointStore
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
    """Make what a run of one rank has learned the live version of this storage; the settings that lead to it."""
    config = replace(run.config, index=index, storage_path=str(storage))
    assert publish_run(run, config).version is not None
    return config


def publish_run(run: TrainingRun, config: FreshetConfig) -> PublishReport:
    """Build a version of what a run of one rank has learned, under these settings."""
    checkpoint = save_checkpoint(run, CheckpointStore(config.checkpoint_location), Collectives())
    assert checkpoint is not None
    with torch.random.fork_rng():
        towers = new_towers(config, run.device)
    return build_version(Collectives(), config, checkpoint, Questions(), {}, model=towers)
