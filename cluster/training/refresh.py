"""Re-embeds the whole catalogue from a checkpoint, every rank its own items, and publishes a version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from cluster.checkpoints.attribute_change import AttributeChange
from cluster.checkpoints.checkpoint import trusted_checkpoint
from cluster.checkpoints.part import Saved
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.device import compute_deterministically
from cluster.publishing.building import Questions, build_version
from cluster.publishing.quality import last_events
from cluster.queries.query_batch import query_batch
from cluster.queries.sampled_users import sampled_users
from cluster.queries.saved_catalogue import SavedCatalogue
from cluster.queries.towers import new_towers
from retrieval.storage.durable import PRIVATE_FILE, replacing
from streaming.events.schema import USER_ID
from streaming.histories.history import UserStore

_QUERY_USERS = 2048
_ENCODED_AT_ONCE = 128


def refresh_from(
    config: FreshetConfig,
    comm: Collectives,
    device: torch.device,
    *,
    checkpoint_path: str | Path,
    report_path: Path,
) -> None:
    """Collective. Encode, build, gate, promote; rank 0 writes what came of it as JSON.

    Nothing that only training needs is read. Queries of the gates are up to 2,048 users, as of all that the checkpoint
    knows of them.

    Args:
        config: current settings.
        comm: the ranks.
        device: of the towers.
        checkpoint_path: a checkpoint that has been verified and is held.
        report_path: the file.
    """
    compute_deterministically(device)
    checkpoint = trusted_checkpoint(checkpoint_path)
    saved = Saved(checkpoint, AttributeChange.since(checkpoint.manifest, config.stream.user_attributes))
    report = build_version(
        comm,
        config,
        checkpoint,
        _questions(config, saved, comm),
        {"checkpoint": str(checkpoint_path)},
        model=new_towers(config, device),
    )
    if comm.rank == 0:
        about = {
            "step": checkpoint.step,
            "events_trained": int(checkpoint.manifest["events_trained"]),
            "known_items": SavedCatalogue.open(saved).item_count,
            "checkpoint": str(checkpoint_path),
            "version": report.version.name if report.version is not None else None,
        }
        _write_report(report_path, {**about, **report.figures()})
    comm.gather_objects(None)


def _questions(config: FreshetConfig, saved: Saved, comm: Collectives) -> Questions:
    """Collective. Rank 0 asks them all: a query's vector must not depend on who else is in its batch."""
    stream = config.stream
    table = sampled_users(saved, comm, _QUERY_USERS)
    if table is None or comm.rank != 0:
        return Questions()
    users = UserStore(stream.history_length, stream.seen_length)
    users.load(table)
    user_Q = table[USER_ID].to_numpy()
    attributes = SavedCatalogue.open(saved).only(user_Q[:0], user_Q, stream)
    arguments = (user_Q, users, attributes, stream.history_length)
    return Questions(users=_in_slices(query_batch(*arguments)), events=_in_slices(last_events(*arguments)))


def _in_slices(batch: pa.RecordBatch) -> list[pa.RecordBatch]:
    """What the towers hold of a slice while they encode it does not depend on the number of users."""
    return [batch.slice(start, _ENCODED_AT_ONCE) for start in range(0, batch.num_rows, _ENCODED_AT_ONCE)]


def _write_report(path: Path, report: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.touch(PRIVATE_FILE)
        temporary.write_text(json.dumps(report))
