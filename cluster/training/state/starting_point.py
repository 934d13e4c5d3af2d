"""`train.init_from`: a new run starts with the learned state of an earlier one and reads its own stream from the start.

Taken over: towers and rows with optimizer state (user attributes by name), item frequencies, `events_seen`, and the
step, which continues. Not taken over: positions, histories, seen items, ledger, catalogue, progressive curve and
baselines.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.checkpoints.checkpoint import Checkpoint, CheckpointStore, open_checkpoint
from cluster.checkpoints.hold import holding
from cluster.checkpoints.manifest import CheckpointError
from cluster.config import FreshetConfig
from cluster.training.state.compatibility import require_same, require_same_towers
from retrieval.storage.base import MANIFEST, StorageLocationError

if TYPE_CHECKING:
    from cluster.collectives import Collectives
    from cluster.training.state.run import TrainingRun

# The meaning of towers and rows depends on these; other settings of the model may differ between runs.
_MUST_AGREE = (
    "model.dim",
    "model.layers",
    "model.heads",
    "model.augmented_dim",
    "model.transformer",
    "model.augmented_vectors",
    "train.row_optimizer",
)
_ADVICE = "point train.init_from elsewhere"

_log = logging.getLogger(__name__)


def find_starting_point(config: FreshetConfig) -> Checkpoint | None:
    """The verified checkpoint that `train.init_from` names; None if it is empty.

    It may name a checkpoint, a run's `storage_path`, or its `checkpoints` folder; for a run, the newest one is used.

    Raises:
        CheckpointError: there is none, it does not verify, or its settings do not fit; names the setting.
    """
    if not config.train.init_from:
        return None
    try:
        checkpoint = _newest_in(config.train.init_from)
    except (CheckpointError, StorageLocationError) as problem:
        raise CheckpointError(f"{problem} (setting: train.init_from)") from problem
    require_same(checkpoint, config, _MUST_AGREE, _ADVICE)
    require_same_towers(checkpoint, config, _ADVICE)
    return checkpoint


def start_from(run: TrainingRun, checkpoint: Checkpoint, comm: Collectives) -> None:
    """Collective. Every rank restores the towers and the rows that it owns, whichever rank wrote them."""
    from cluster.training.state.worker_state import restore_learnt  # imports torch; a driver only looks

    # The trainer of that run may still remove old checkpoints while this reads.
    purpose = "train.init_from"
    with holding(checkpoint.storage, checkpoint.name, purpose) if comm.rank == 0 else nullcontext():
        comm.gather_objects(None)
        restore_learnt(run, checkpoint, comm, advice=_ADVICE)
        comm.gather_objects(None)
    run.started_from(checkpoint, comm.rank)
    _log.info("started from %s (step %d)", checkpoint.location, run.step)


def _newest_in(start: str) -> Checkpoint:
    if "://" in start:
        newest = CheckpointStore(start, advice=_ADVICE).newest()
        return newest if newest is not None else open_checkpoint(start)
    folder = Path(start).expanduser()
    if (folder / MANIFEST).is_file():
        return open_checkpoint(folder)
    inside = folder / "checkpoints"
    newest = CheckpointStore(inside if inside.is_dir() else folder, advice=_ADVICE).newest()
    if newest is None:
        what = "holds no checkpoint" if folder.is_dir() else "is not a folder"
        raise CheckpointError(f"{folder} {what}, so a run cannot be started from it")
    return newest
