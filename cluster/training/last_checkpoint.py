"""Writes the last checkpoint of a run, which waits for the storage because no later one could replace it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np

from cluster.checkpoints.checkpoint import Checkpoint
from cluster.checkpoints.manifest import CheckpointError
from cluster.checkpoints.writing import Checkpointer
from cluster.collectives import Collectives

_RETRY_S = 1.0
_log = logging.getLogger(__name__)


def commit_last(
    checkpointer: Checkpointer,
    step: int,
    comm: Collectives,
    *,
    patience_s: float,
    waiting: Callable[[], bool],
) -> Checkpoint | None:
    """Collective. Commit a checkpoint of this very step; retries while the storage fails.

    Args:
        checkpointer: of the run.
        step: the run's.
        comm: the ranks.
        patience_s: how long to retry.
        waiting: called before each retry; returns whether to retry.
    Returns:
        The checkpoint, on rank 0.
    Raises:
        CheckpointError: the storage failed until the end; the same on every rank.
    """
    started = time.monotonic()
    told = False
    while True:
        try:
            return checkpointer.finish(step)
        except CheckpointError as error:
            ended = time.monotonic() - started >= patience_s or not waiting()
            if comm.exchange(np.array([float(ended)])).any():
                raise
            if not told and comm.rank == 0:
                told = True
                _log.warning("waiting up to %.0f s (train.storage_patience_s): %s", patience_s, error)
            time.sleep(_RETRY_S)
