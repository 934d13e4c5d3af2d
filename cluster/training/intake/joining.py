"""Makes a worker group the one that writes its run's checkpoints."""

from __future__ import annotations

import errno
import time

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.collectives import Collectives
from cluster.storage_trouble import StorageTrouble

_RETRY_S = 1.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def join_run(checkpoints: CheckpointStore, run_id: str, comm: Collectives) -> None:
    """Collective. Fence off the earlier groups of this run; while the disk is full, all ranks wait for room together.

    Raises:
        cluster.checkpoints.claim.StorageTaken: on rank 0, if another run has claimed the storage.
    """
    trouble = StorageTrouble(f"{checkpoints.where} cannot be claimed")
    while True:
        joined = _join(checkpoints, run_id, trouble) if comm.rank == 0 else None
        if comm.gather_objects(joined)[0]:
            return
        time.sleep(_RETRY_S)


def _join(checkpoints: CheckpointStore, run_id: str, trouble: StorageTrouble) -> bool:
    try:
        checkpoints.join(run_id)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        trouble.failed(error)
        return False
    trouble.works()
    return True
