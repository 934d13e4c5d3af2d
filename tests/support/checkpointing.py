"""Writes checkpoints of a run without its loop."""

from cluster.checkpoints.checkpoint import Checkpoint, CheckpointStore
from cluster.checkpoints.writing import Checkpointer
from cluster.collectives import Collectives
from cluster.training.state.run import TrainingRun
from cluster.training.state.worker_state import checkpointer_of


def save_checkpoint(run: TrainingRun, store: CheckpointStore, comm: Collectives) -> Checkpoint | None:
    """Collective. Commit a full checkpoint of this step and wait for it; rank 0 gets it."""
    checkpointer = checkpointer_of(run, store, comm)
    try:
        return checkpointer.finish(run.step)
    finally:
        checkpointer.close()


def start_new_chain(checkpointer: Checkpointer) -> None:
    """Make the next checkpoint full, whatever the policy says."""
    checkpointer._parent = None
