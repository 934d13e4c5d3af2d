"""The whole state of a run, saved and restored as one commit.

| file | written by | holds |
|---|---|---|
| `towers.safetensors` | rank 0 | towers and their AdamW moments |
| `rows-LLLL-HHHH.arrow` | every rank | embedding rows of the buckets it owns |
| `users-pPPPP.arrow` | reader of the partition | histories, seen sets, activity, explicit negatives |
| `admission-pPPPP.arrow` | reader of the partition | last event ids and watermark (`stream_state.py`) |
| `ledger-pPPPP.arrow` | reader of the partition | what has been used, for the exactly-once proof |
| `catalogue-items.arrow`, `catalogue-users.arrow` | rank 0 | attributes, and the order in which items became known |
| `baselines.safetensors` | rank 0 | popularity and co-occurrence counts |
| `rng-rRRRR.safetensors` | every rank | torch's generator state |
| `manifest.json` | rank 0 | step, positions, counters, progressive curve, config, what the run was started from |
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cluster.catalogue_files import read_catalogue, save_catalogue
from cluster.checkpoint import (
    START_ANEW,
    Checkpoint,
    CheckpointStore,
    read_table,
    read_tensors,
    write_table,
    write_tensors,
)
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.ledger import PartitionLedger
from cluster.progressive import Curve, ProgressiveValidation
from cluster.row_files import PREFIX as ROWS
from cluster.row_files import load_rows, save_rows
from cluster.stream_state import merged
from cluster.tower_files import FILE as TOWERS
from cluster.tower_files import load_towers, save_towers
from cluster.training_run import TrainingRun
from retrieval.durable_files import FileEntry
from streaming.position import Position


def save_checkpoint(run: TrainingRun, store: CheckpointStore, comm: Collectives) -> Checkpoint | None:
    """Collective. Commit the state as of this step; returns the checkpoint on rank 0."""
    if comm.rank == 0:
        store.begin(run.step)
    comm.gather_objects(None)
    written = _write_files(run, store.writing_path(run.step), comm)
    mine = {
        "files": written,
        "positions": {str(p): list(at) for p, at in run.source.positions().items()},
        "rows_read": run.batcher.rows_read,
        "dead_letters": run.batcher.rows_dead,
        "stream": run.stream.to_json(),
    }
    told = comm.gather_objects(mine)
    checkpoint = None
    if comm.rank == 0:
        files = [entry for rank in told for entry in rank["files"]]
        checkpoint = store.commit(run.step, files, _manifest(run, told, comm.world))
    comm.gather_objects(None)  # nobody goes on before the commit
    return checkpoint


def restore_checkpoint(run: TrainingRun, checkpoint: Checkpoint, comm: Collectives) -> None:
    """Read what this rank owns now, whoever wrote it."""
    manifest = checkpoint.manifest
    restore_learnt(run, checkpoint, comm)
    run.stream.restore(checkpoint, run.partitions)
    for partition in run.partitions:
        run.users.load(read_table(checkpoint.path / f"users-p{partition:05d}.arrow"))
        ledger = PartitionLedger.from_table(read_table(checkpoint.path / f"ledger-p{partition:05d}.arrow"))
        run.ledger.partitions[partition] = ledger
    run.catalogue.apply(read_catalogue(checkpoint.path))
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
    if int(manifest["workers"]) == comm.world:
        torch.set_rng_state(read_tensors(checkpoint.path / f"rng-r{comm.rank:05d}.safetensors")["cpu"])


def restore_learnt(
    run: TrainingRun, checkpoint: Checkpoint, comm: Collectives, *, advice: str = START_ANEW
) -> None:
    """What a checkpoint knows of the world, whatever stream it came from: towers, rows, optimizers, frequencies.

    The step comes along: random views and negatives are functions of (seed, step), so that a run that counts on does
    not draw again what was drawn before, and a warm-up that is over stays so.
    """
    load_towers(checkpoint.path / TOWERS, run.model, run.train_step.optimizer, advice=advice)
    load_rows(checkpoint.files(ROWS), run.table, comm.rank, comm.world, advice=advice)
    run.step = int(checkpoint.manifest["step"])
    run.train_step.events_seen = float(checkpoint.manifest["events_seen"])


def _write_files(run: TrainingRun, directory: Path, comm: Collectives) -> list[FileEntry]:
    files = [save_rows(directory, run.table, comm.rank, comm.world)]
    files += run.stream.save(directory, run.partitions)
    for partition in run.partitions:
        files.append(write_table(directory / f"users-p{partition:05d}.arrow", run.users.to_table(partition)))
        ledger = run.ledger.partitions[partition].to_table()
        files.append(write_table(directory / f"ledger-p{partition:05d}.arrow", ledger))
    rng = {"cpu": torch.get_rng_state()}
    files.append(write_tensors(directory / f"rng-r{comm.rank:05d}.safetensors", rng))
    if comm.rank == 0:
        files.append(save_towers(directory, run.model, run.train_step.optimizer))
        files += save_catalogue(directory, run.catalogue)
        baselines = {
            f"{name}.{key}": torch.from_numpy(array)
            for name, baseline in _baselines(run.progressive).items()
            for key, array in baseline.to_arrays().items()
        }
        files.append(write_tensors(directory / "baselines.safetensors", baselines))
    return files


def _manifest(run: TrainingRun, told: list[dict[str, Any]], world: int) -> dict[str, Any]:
    positions: dict[str, list[int]] = {}
    for rank in told:
        positions.update(rank["positions"])
    return {
        "workers": world,
        "positions": positions,
        "catalogue_positions": {
            topic: {str(p): list(at) for p, at in places.items()}
            for topic, places in run.catalogue_positions.items()
        },
        "rows_read": sum(rank["rows_read"] for rank in told) + run.rows_read_before,
        "dead_letters": sum(rank["dead_letters"] for rank in told) + run.dead_letters_before,
        "events_trained": run.events_trained,
        "stream": merged(rank["stream"] for rank in told),
        "events_seen": run.train_step.events_seen,
        "init_from": run.init_from,
        "curve": run.curve.to_json(),
        "config": _config_without_secrets(run.config),
    }


def _config_without_secrets(config: FreshetConfig) -> dict[str, Any]:
    return asdict(config)  # secrets are read from the environment; settings only name the variables


def _baselines(progressive: ProgressiveValidation) -> dict[str, Any]:
    return {"popularity": progressive.popularity, "cooccurrence": progressive.cooccurrence}


def _restore_progressive(progressive: ProgressiveValidation, checkpoint: Checkpoint) -> None:
    tensors = read_tensors(checkpoint.path / "baselines.safetensors")
    for name, baseline in _baselines(progressive).items():
        prefix = f"{name}."
        baseline.load_arrays(
            {k.removeprefix(prefix): t.numpy() for k, t in tensors.items() if k.startswith(prefix)}
        )
