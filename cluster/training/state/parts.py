"""The one list of the parts of a run's checkpoints; a new piece of state adds its part here.

A part's module in `cluster/checkpoints/parts/` describes the files that it writes. With a catalogue of a million items
without titles, a delta has about 15 MB of unchanged data.
"""

from __future__ import annotations

from cluster.checkpoints.checkpoint import Checkpoint
from cluster.checkpoints.part import Part
from cluster.checkpoints.parts.baselines import BaselinePart
from cluster.checkpoints.parts.catalogue import CataloguePart
from cluster.checkpoints.parts.curve import CurvePart
from cluster.checkpoints.parts.generators import GeneratorPart
from cluster.checkpoints.parts.id_texts import IdTextPart
from cluster.checkpoints.parts.ledger import LedgerPart
from cluster.checkpoints.parts.pairs import PairPart
from cluster.checkpoints.parts.progress import CountsPart, PositionsPart, StepPart
from cluster.checkpoints.parts.rows import RowPart
from cluster.checkpoints.parts.settings import SettingsPart
from cluster.checkpoints.parts.stream import StreamPart
from cluster.checkpoints.parts.towers import TowerPart
from cluster.checkpoints.parts.users import UserPart
from cluster.checkpoints.parts.waiting import WaitingPart
from cluster.collectives import Collectives
from cluster.training.state.run import TrainingRun
from streaming.arrays import BoolArray, Int64Array


def parts_of(run: TrainingRun, comm: Collectives, parent: Checkpoint | None = None) -> list[Part]:
    """Every piece of a run's state, in the order in which it is restored.

    Args:
        run: its state is read and written in place.
        comm: of the run; rank 0 writes state that all ranks share.
        parent: the checkpoint that the next delta builds on.
    """
    rank, world, first = comm.rank, comm.world, comm.rank == 0
    counted = run.progressive.cooccurrence
    return [
        TowerPart(run.model, run.train_step.optimizer, writes=first),
        RowPart(run.table, rank, world),
        WaitingPart(run.table, rank, world),
        StepPart(run),
        StreamPart(run.stream, run.partitions),
        UserPart(run.users, run.partitions, run.stream.partitions),
        LedgerPart(run.ledger, run.partitions),
        CataloguePart(run.catalogue, writes=first),
        IdTextPart(  # after UserPart and CataloguePart
            run.texts, lambda users: knows_user(run, users, first), run.catalogue.knows, rank
        ),
        CountsPart(run, rank),
        PositionsPart(run, rank),
        CurvePart(run.curve),
        BaselinePart(run.progressive, writes=first),
        PairPart(
            counted.pairs, writes=first, parent=parent, stopped=lambda: counted.stopped
        ),  # after BaselinePart
        GeneratorPart(run.device, rank, world, lambda: run.seed_dropout(rank)),  # after StepPart
        SettingsPart(run),
    ]


def knows_user(run: TrainingRun, users: Int64Array, first: bool) -> BoolArray:
    """bool (n,): whether a rank has events of each user; the first one answers for those of the catalogue too."""
    known: BoolArray = (run.users.counts(users) > 0) | (run.users.negatives.counts(users) > 0)
    return known | run.catalogue.knows_user(users) if first else known
