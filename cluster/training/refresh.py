"""Re-embeds the whole catalogue from a checkpoint, every rank its own items, and publishes a version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cluster.checkpoints.checkpoint import open_checkpoint
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.publishing.publisher import Publisher
from cluster.publishing.query_batch import query_batch
from cluster.publishing.query_side import QuerySide
from cluster.training.state.run import TrainingRun, partitions_of_rank
from cluster.training.state.worker_state import restore_checkpoint
from retrieval.storage.durable import PRIVATE_FILE, replacing

_QUERY_USERS = 1024


def refresh_from(
    config: FreshetConfig,
    comm: Collectives,
    device: torch.device,
    *,
    checkpoint_path: str | Path,
    report_path: Path,
) -> None:
    """Collective. Restore, encode, build, gate, promote; rank 0 writes what came of it as JSON.

    The recall gate needs queries: up to 1,024 users of each rank, as of all that the checkpoint knows of them.
    """
    checkpoint = open_checkpoint(checkpoint_path)
    partitions = partitions_of_rank(len(checkpoint.manifest["positions"]), comm.rank, comm.world)
    run = TrainingRun.create(config, partitions, comm, device)
    restore_checkpoint(run, checkpoint, comm)
    publisher = Publisher(comm, config)
    metadata: dict[str, object] = {
        "step": run.step,
        "events_trained": run.events_trained,
        "known_items": int(run.catalogue.item_count),
        "checkpoint": str(checkpoint_path),
    }
    queries = encode_users(run, _some_users(run))
    snapshot = publisher.snapshot(run.model, run.table, run.catalogue, [queries], metadata)
    if snapshot is None:
        raise OSError(f"{publisher.problem or 'a rank could not write'} (setting: storage_path)")
    if comm.rank == 0:
        report = publisher.build(snapshot)
        version = report.version.name if report.version is not None else None
        _write_report(report_path, {**metadata, "version": version, **report.figures()})
    comm.gather_objects(None)


def encode_users(run: TrainingRun, users: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Collective. The query vectors of users after all their events, float32 (Q, D)."""
    width = run.config.stream.history_length
    queries = QuerySide(run.model, run.table, run.catalogue, run.config.model)
    return queries.encode(query_batch(users, run.users, run.catalogue, width))


def _some_users(run: TrainingRun) -> npt.NDArray[np.int64]:
    everyone = np.concatenate([np.zeros(0, np.int64), *(run.users.users_of(p) for p in run.partitions)])
    chosen = np.random.default_rng(run.config.seed).permutation(everyone.shape[0])[:_QUERY_USERS]
    return everyone[np.sort(chosen)]


def _write_report(path: Path, report: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.touch(PRIVATE_FILE)
        temporary.write_text(json.dumps(report))
