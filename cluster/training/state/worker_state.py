"""Connects a run's parts to its checkpoints, for writing and restoring."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from cluster.checkpoints.attribute_change import AttributeChange
from cluster.checkpoints.checkpoint import Checkpoint, CheckpointStore
from cluster.checkpoints.manifest import START_ANEW
from cluster.checkpoints.part import Part, Saved
from cluster.checkpoints.writing import Checkpointer, FullPolicy
from cluster.collectives import Collectives
from cluster.training.state.parts import parts_of
from cluster.training.state.run import TrainingRun
from retrieval.storage.base import Hook, nothing

_log = logging.getLogger(__name__)


def checkpointer_of(
    run: TrainingRun,
    store: CheckpointStore,
    comm: Collectives,
    parent: Checkpoint | None = None,
    at: Hook = nothing,
    at_snapshot: Callable[[], None] = lambda: None,
) -> Checkpointer:
    """The checkpointer of a run that is in the state of `parent`, or new.

    If keys of user attributes differ from `parent`, their rows cannot be written as changes, and a new chain begins.
    """
    train = run.config.train
    if parent is not None and attributes_since(parent, run).changed:
        parent = None
    return Checkpointer(
        store,
        comm,
        parts_of(run, comm, parent),
        parent=parent,
        policy=FullPolicy(train.checkpoint_full_every, train.checkpoint_full_share),
        at=at,
        at_snapshot=at_snapshot,
    )


def restore_checkpoint(run: TrainingRun, checkpoint: Checkpoint, comm: Collectives) -> None:
    """Read what this rank owns now, whichever rank wrote it."""
    saved = Saved(checkpoint, attributes_since(checkpoint, run))
    _restore(run, saved, parts_of(run, comm), comm)
    if saved.attributes.fresh:
        run.need_users_again()


def restore_learnt(
    run: TrainingRun, checkpoint: Checkpoint, comm: Collectives, *, advice: str = START_ANEW
) -> None:
    """Restore the learned state of a checkpoint of any stream: the parts that are `learnt`."""
    saved = Saved(checkpoint, attributes_since(checkpoint, run), advice)
    _restore(run, saved, [part for part in parts_of(run, comm) if part.learnt], comm)


def attributes_since(checkpoint: Checkpoint, run: TrainingRun) -> AttributeChange:
    """The change of the user attributes from a checkpoint to a run."""
    return AttributeChange.since(checkpoint.manifest, run.config.stream.user_attributes)


def _restore(run: TrainingRun, saved: Saved, parts: Sequence[Part], comm: Collectives) -> None:
    change = str(saved.attributes)
    if change:
        saved.notices.append(change)
        if comm.rank == 0:
            _log.warning("%s: %s", saved.checkpoint.location, change)
    for part in parts:
        part.restore(saved)
    run.notify("; ".join(saved.notices))
