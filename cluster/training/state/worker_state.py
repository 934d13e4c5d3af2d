"""The whole state of a run, copied for a checkpoint and restored from one.

| file | written by | holds | in a delta |
|---|---|---|---|
| `rows-LLLL-HHHH…` | every rank | embedding rows of the buckets it owns (`row_files.py`) | what changed |
| `waiting-LLLL-HHHH.arrow` | every rank | keys that are counted before they have a row (`row_files.py`) | all |
| `users-pPPPPP…`, `ledger-pPPPPP…` | reader of the partition | histories, counts (`user_files.py`) | what changed |
| `admission-pPPPPP.arrow` | reader of the partition | last event ids and watermark (`stream_state.py`) | all |
| `towers.safetensors` | rank 0 | towers and their AdamW moments | all |
| `catalogue-items.arrow`, `catalogue-users.arrow` | rank 0 | attributes, the order in which items came | all |
| `baselines.safetensors` | rank 0 | popularity counts, and which item each column of the baselines is | all |
| `cooccurrence…` | rank 0 | co-occurrence counts (`pair_files.py`) | what changed |
| `rng-rRRRRR.safetensors` | every rank | torch's generators, which dropout draws from | all |
| `manifest.json` | rank 0 | step, positions, counters, progressive curve, config, origin, chain | all |

Of a catalogue of a million items without titles a delta so carries about 15 MB.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from cluster.checkpoints.arrays import read_tensors
from cluster.checkpoints.attribute_change import AttributeChange
from cluster.checkpoints.checkpoint import Checkpoint, CheckpointStore
from cluster.checkpoints.manifest import START_ANEW
from cluster.checkpoints.parts.catalogue import catalogue_tables, read_catalogue
from cluster.checkpoints.parts.pairs import BASELINES, PairPart, load_pairs
from cluster.checkpoints.parts.rows import PREFIX as ROWS
from cluster.checkpoints.parts.rows import WAITING, RowPart, load_rows, load_waiting, waiting_tables
from cluster.checkpoints.parts.towers import FILE as TOWERS
from cluster.checkpoints.parts.towers import load_towers, tower_tensors
from cluster.checkpoints.parts.users import LedgerPart, UserPart, load_users, merged_ledger, partitions_in
from cluster.checkpoints.writing import Checkpointer, FullPolicy, Part, Snapshot
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.training.state.run import TrainingRun, seed_dropout
from cluster.training.state.stream_state import load_moved_users, merged, saved_stream
from cluster.training.steps.generators import drawn_on_gpu, generator_states, restore_generators
from cluster.training.steps.progressive import Curve, ProgressiveValidation
from model.attribute_columns import earlier_columns
from retrieval.storage.base import Hook, nothing
from streaming.events.position import Position

_log = logging.getLogger(__name__)


def checkpointer_of(
    run: TrainingRun,
    store: CheckpointStore,
    comm: Collectives,
    parent: Checkpoint | None = None,
    at: Hook = nothing,
) -> Checkpointer:
    """What writes the checkpoints of a run that is in the state of `parent`, or new.

    Rows of user attributes that have another key than in `parent` cannot be told as changes: a new chain begins.
    """
    train = run.config.train
    if parent is not None and attributes_since(parent, run).changed:
        parent = None
    parts: list[Part] = [
        RowPart(run.table, comm.rank, comm.world),
        UserPart(run.users, run.partitions),
        LedgerPart(run.ledger, run.partitions),
        PairPart(run.progressive.cooccurrence.pairs, writes=comm.rank == 0, parent=parent),
    ]
    return Checkpointer(
        store,
        comm,
        parts,
        lambda: take_snapshot(run, comm),
        describe,
        parent=parent,
        policy=FullPolicy(train.checkpoint_full_every, train.checkpoint_full_share),
        at=at,
    )


def save_checkpoint(run: TrainingRun, store: CheckpointStore, comm: Collectives) -> Checkpoint | None:
    """Collective. Commit a full checkpoint of this step and wait for it; on rank 0 what was committed."""
    checkpointer = checkpointer_of(run, store, comm)
    try:
        return checkpointer.finish(run.step)
    finally:
        checkpointer.close()


def take_snapshot(run: TrainingRun, comm: Collectives) -> Snapshot:
    """Copies of what is small, between two steps."""
    tables = run.stream.tables(run.partitions) | waiting_tables(run.table, comm.rank, comm.world)
    tensors = {_rng_file(comm.rank): generator_states(run.device)}
    if comm.rank == 0:
        tables |= catalogue_tables(run.catalogue)
        tensors[TOWERS] = tower_tensors(run.model, run.train_step.optimizer)
        tensors[BASELINES] = {k: torch.from_numpy(a) for k, a in run.progressive.baseline_arrays().items()}
    told = {
        "step": run.step,
        "workers": comm.world,
        "positions": {str(p): list(at) for p, at in run.source.positions().items()},
        "catalogue_positions": {
            topic: {str(p): list(at) for p, at in places.items()}
            for topic, places in run.catalogue_positions.items()
        },
        "rows_read": run.batcher.rows_read + run.rows_read_before,
        "dead_letters": run.batcher.rows_dead + run.dead_letters_before,
        "events_trained": run.events_trained,
        "stream": run.stream.to_json(),
        "events_seen": run.train_step.events_seen,
        "init_from": run.init_from,
        "curve": run.curve.to_json(),
        "config": _config_without_secrets(run.config),
    }
    return Snapshot(tables, tensors, told)


def describe(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The manifest's state from what every rank told, in rank order; what all of them know, rank 0 says."""
    positions: dict[str, list[int]] = {}
    for rank in told:
        positions.update(rank["positions"])
    return {
        **told[0],
        "positions": positions,
        "rows_read": sum(rank["rows_read"] for rank in told),
        "dead_letters": sum(rank["dead_letters"] for rank in told),
        "stream": merged(rank["stream"] for rank in told),
    }


def restore_checkpoint(run: TrainingRun, checkpoint: Checkpoint, comm: Collectives) -> None:
    """Read what this rank owns now, whoever wrote it."""
    manifest = checkpoint.manifest
    restore_learnt(run, checkpoint, comm)
    run.stream.restore(checkpoint, run.partitions)
    if saved_stream(manifest)["partitions"] == run.stream.partitions:
        load_users(checkpoint, run.users, run.partitions)
    else:
        load_moved_users(checkpoint, run.users, run.partitions, run.stream.partitions)
    for partition in set(run.partitions) & set(partitions_in(checkpoint)):
        run.ledger.partitions[partition] = merged_ledger(checkpoint, partition)
    catalogue = read_catalogue(checkpoint)
    change = attributes_since(checkpoint, run)
    if change.changed:
        catalogue = replace(catalogue, users=change.of_users(catalogue.users))
        run.reread_users = bool(change.fresh)
    run.catalogue.apply(catalogue)
    run.events_trained = int(manifest["events_trained"])
    run.init_from = manifest.get("init_from")
    run.curve = Curve(
        int(manifest["curve"]["bin_events"]),
        {name: list(manifest["curve"][name]) for name in run.curve.bins},
    )
    run.positions = {
        int(p): Position(*at) for p, at in manifest["positions"].items() if int(p) in run.partitions
    }
    if comm.rank == 0:
        # Counted on one rank, so that the sum over ranks is the total.
        run.rows_read_before = int(manifest["rows_read"])
        run.dead_letters_before = int(manifest["dead_letters"])
        run.catalogue_positions = {
            topic: {int(p): Position(*at) for p, at in places.items()}
            for topic, places in manifest["catalogue_positions"].items()
        }
    _restore_progressive(run.progressive, checkpoint)
    _restore_generators(run, checkpoint, comm)


def restore_learnt(
    run: TrainingRun, checkpoint: Checkpoint, comm: Collectives, *, advice: str = START_ANEW
) -> None:
    """What a checkpoint knows of the world, whatever stream it came from: towers, rows, optimizers, frequencies.

    The step comes along: random views and negatives are functions of (seed, step), so that a run that counts on does
    not draw again what was drawn before, and a warm-up that is over stays so.
    """
    change = attributes_since(checkpoint, run)
    run.notice = str(change)
    if run.notice and comm.rank == 0:
        _log.warning("%s: %s", checkpoint.location, run.notice)
    columns = earlier_columns(run.model, change.place_F, len(change.before)) if change.changed else {}
    load_towers(checkpoint.file(TOWERS), run.model, run.train_step.optimizer, columns=columns, advice=advice)
    load_rows(checkpoint.files(ROWS), run.table, comm.rank, comm.world, attributes=change, advice=advice)
    own = [e["name"] for e in checkpoint.manifest["files"] if e["name"].startswith(WAITING)]
    load_waiting(map(checkpoint.file, own), run.table, comm.rank, comm.world)
    run.step = int(checkpoint.manifest["step"])
    run.train_step.events_seen = float(checkpoint.manifest["events_seen"])


def attributes_since(checkpoint: Checkpoint, run: TrainingRun) -> AttributeChange:
    """What became of the user attributes from a checkpoint to a run."""
    return AttributeChange.since(checkpoint.manifest, run.config.stream.user_attributes)


def _config_without_secrets(config: FreshetConfig) -> dict[str, Any]:
    return asdict(config)  # secrets are read from the environment; settings only name the variables


def _restore_progressive(progressive: ProgressiveValidation, checkpoint: Checkpoint) -> None:
    tensors = read_tensors(checkpoint.file(BASELINES))
    progressive.load_baselines({name: tensor.numpy() for name, tensor in tensors.items()})
    if not progressive.cooccurrence.stopped:
        load_pairs(checkpoint, progressive.cooccurrence.pairs)


def _rng_file(rank: int) -> str:
    return f"rng-r{rank:05d}.safetensors"


def _restore_generators(run: TrainingRun, checkpoint: Checkpoint, comm: Collectives) -> None:
    """The same ranks on the same type of device draw on; others are seeded by the step, so as not to draw again."""
    if int(checkpoint.manifest["workers"]) != comm.world:
        seed_dropout(run.config.seed, comm.rank, run.step)
        return
    states = read_tensors(checkpoint.file(_rng_file(comm.rank)))
    if drawn_on_gpu(states) == (run.device.type == "cuda"):
        restore_generators(states, run.device)
        return
    seed_dropout(run.config.seed, comm.rank, run.step)
    before, now = ("a GPU", "a CPU") if drawn_on_gpu(states) else ("a CPU", "a GPU")
    notice = f"resumed on {now} from a checkpoint written on {before}: dropout draws other masks from here on"
    run.notice = "; ".join(filter(None, (run.notice, notice)))
    if comm.rank == 0:
        _log.info("%s: %s", checkpoint.location, notice)
