"""One attempt to build a version from a checkpoint: the request, the outcome, and the function that does it.

The same function runs in a thread of each worker and in a process beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import pyarrow as pa

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.checkpoints.hold import holding
from cluster.checkpoints.manifest import CheckpointError
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.publishing.building import Questions, build_version
from model.two_tower import TwoTower
from retrieval.ranks import on_first_rank
from retrieval.versions.publish import NothingToIndex, PublishReport
from retrieval.versions.store import VersionError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """The data that a rank needs to build its share of a version.

    Attributes:
        config: the run's.
        location: where its checkpoints are.
        checkpoint: the name of one that is committed.
        questions: of this rank, for the gates.
    """

    config: FreshetConfig
    location: str
    checkpoint: str
    questions: Questions


@dataclass(frozen=True)
class Outcome:
    """The outcome of an attempt; one of the first three is set.

    Attributes:
        report: it was built; its gates may have refused it.
        problem: a failure that costs only the version: of the storage, a lost builder, a checkpoint without items.
        error: any other failure, which ends the run.
        lost: whether the ranks' connection is no longer usable.
    """

    report: PublishReport | None = None
    problem: str = ""
    error: BaseException | None = None
    lost: bool = False


def make_version(
    comm: Collectives,
    attempt: Attempt,
    towers: TwoTower,
    check: Callable[[], None],
    new_events: Callable[[], Sequence[pa.RecordBatch]],
) -> Outcome:
    """Collective. Build, gate and promote a version; does not raise.

    Args:
        comm: the ranks' builders.
        attempt: the same on every rank.
        towers: see `build_version`.
        check: called on rank 0 before a version is begun and before it goes live; raises if it must not.
        new_events: see `build_version`.
    """
    store, first = CheckpointStore(attempt.location), comm.rank == 0
    try:
        with holding(store.storage, attempt.checkpoint, "an index version") if first else nullcontext():
            on_first_rank(comm, check)  # without a hold, nothing is read
            checkpoint = store.open(attempt.checkpoint)
            report = build_version(
                comm,
                attempt.config,
                checkpoint,
                attempt.questions,
                {"checkpoint": checkpoint.location},
                model=towers,
                check=check,
                new_events=new_events,
            )
            comm.gather_objects(None)  # the hold ends once every rank has read
    except (OSError, VersionError, CheckpointError, NothingToIndex) as error:
        return Outcome(problem=str(error))
    except Exception as error:
        if comm.broken or comm.explains(error):
            return Outcome(problem=f"a rank was lost while a version was built ({error})", lost=True)
        return Outcome(error=error)
    return Outcome(report)
