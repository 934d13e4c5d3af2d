"""A committed checkpoint to a live index version: all ranks together, each over the items that it owns.

1. every rank indexes the rows of its buckets and maps their values; rank 0 makes the attempt's folder
2. each rank writes its rows there, rank 0 also towers, catalogue, and settings; each encodes its queries
3. each rank encodes its items in slices, and all build, gate, and promote the version (`retrieval.versions.publish`)

Training is not affected: there are no messages except those of `comm`, no optimizer state, no second table. No process
holds all vectors or all rows. Every attempt has its own folder, so a trainer and any number of refreshes can publish at
the same time. Its ranks own it together, and the next attempt removes it once no owner is left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.checkpoints.attribute_change import AttributeChange
from cluster.checkpoints.checkpoint import Checkpoint
from cluster.checkpoints.part import Saved
from cluster.checkpoints.parts.rows import frozen_rows, write_frozen_rows
from cluster.checkpoints.parts.towers import TowerPart
from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.publishing.index_device import index_settings, with_room
from cluster.publishing.item_encoding import SLICE_ITEMS, encode_items
from cluster.publishing.quality import events_to_ask, quality_of
from cluster.queries.query_side import QuerySide, describe
from cluster.queries.saved_catalogue import SavedCatalogue
from cluster.queries.version_store import version_store
from cluster.tables.buckets import bucket_range
from cluster.tables.frozen_rows import FrozenRows, RowSettings, of_buckets
from model.two_tower import TwoTower
from retrieval.ranks import keep_result, on_first_rank
from retrieval.stages import Stages
from retrieval.storage.owned_folder import OwnedFolder, OwnedFolders, share_folder
from retrieval.versions.gate import Quality
from retrieval.versions.publish import PublishReport, publish
from streaming.arrays import Float32Array, Int64Array

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Questions:
    """What this rank asks of a candidate.

    Attributes:
        query_QD: float32, recent query vectors of about the same towers, for tuning and for the recall gate.
        users: the same as batches in TRAINING_BATCH_SCHEMA, to be encoded by the checkpoint's own towers.
        events: recent events in TRAINING_BATCH_SCHEMA, for the quality gate if there are too few new ones.
    """

    query_QD: Float32Array | None = None
    users: Sequence[pa.RecordBatch] = ()
    events: Sequence[pa.RecordBatch] = ()


def build_version(
    comm: Collectives,
    config: FreshetConfig,
    checkpoint: Checkpoint,
    questions: Questions,
    metadata: Mapping[str, object],
    *,
    model: TwoTower,
    check: Callable[[], None] = lambda: None,
    new_events: Callable[[], Sequence[pa.RecordBatch]] = tuple,
) -> PublishReport:
    """Collective. Build a version from a checkpoint and promote it if it passes its gates.

    Args:
        comm: the ranks; of one thread of each.
        config: current settings.
        checkpoint: committed, already verified, and held while this reads it.
        questions: of this rank.
        metadata: goes into the manifest, with the checkpoint's step, events, and known items.
        model: towers of these settings (`new_towers`), on the device that encodes; gets the checkpoint's parameters.
            The caller creates them, so that this draws from no generator during training.
        check: called on rank 0 before a version is begun and before it goes live; raises if it must not.
        new_events: called once the candidate is ready; this rank's events since the checkpoint, for the quality gate.
    Raises:
        OSError, VersionError: the storage failed on some rank; on every rank.
        CheckpointError: the checkpoint does not fit the settings, or one of its files is missing or damaged.
    """
    stages = Stages()
    saved = Saved(checkpoint, AttributeChange.since(checkpoint.manifest, config.stream.user_attributes))
    with _attempt(comm, config, check) as folder:
        with stages.timed("rows"):
            # The index of the rows goes with the last item, before a shard needs the room.
            known_items, items = keep_result(
                comm, lambda: _Candidate.open(comm, config, saved, model).write(folder)
            )
        with stages.timed("queries"):
            queries = _queries(comm, config, saved, model, questions)
        described: dict[str, object] = {
            "step": checkpoint.step,
            "events_trained": int(checkpoint.manifest["events_trained"]),
            "known_items": known_items,
            **metadata,
        }
        index = with_room(index_settings(config), known_items, config.model.dim)
        report = publish(
            version_store(config),
            folder,
            items,
            queries,
            index,
            ranks=comm,
            metadata=described,
            seed=config.seed,
            before_commit=check,
            quality=lambda: _quality(comm, config, saved, model, new_events, questions.events),
        )
    stages.seconds |= report.seconds
    if comm.rank == 0:
        _log.info("%d items of %s were refreshed: %s", report.items, checkpoint.location, stages)
    return replace(report, seconds=stages.seconds)


@dataclass(frozen=True)
class _Candidate:
    """The sources of this rank's part of a version."""

    comm: Collectives
    config: FreshetConfig
    model: TwoTower
    rows: FrozenRows
    catalogue: SavedCatalogue

    @staticmethod
    def open(comm: Collectives, config: FreshetConfig, saved: Saved, model: TwoTower) -> _Candidate:
        TowerPart(model).restore(saved)
        mine = of_buckets(bucket_range(comm.rank, comm.world))
        rows = frozen_rows(saved, _row_settings(config), wanted=mine)
        return _Candidate(comm, config, model, rows, SavedCatalogue.open(saved))

    def write(self, folder: Path) -> tuple[int, Iterator[tuple[Int64Array, Float32Array]]]:
        """Write everything of the version but items and index.

        Returns:
            How many items are known; ids and vectors of this rank's items, in slices.
        """
        write_frozen_rows(folder, self.rows, self.comm.rank, self.comm.world)
        if self.comm.rank == 0:
            TowerPart(self.model).publish(folder)
            self.catalogue.write(folder)
            describe(folder, self.config)
        width = self.config.stream.max_categories
        owned = self.catalogue.owned_items(self.comm.rank, self.comm.world, width, SLICE_ITEMS)
        return self.catalogue.item_count, encode_items(self.model, self.rows, owned)


def _row_settings(config: FreshetConfig) -> RowSettings:
    return RowSettings(config.model.dim, config.seed, config.model.init_std, config.table.has_shared_rows)


def _queries(
    comm: Collectives, config: FreshetConfig, saved: Saved, model: TwoTower, questions: Questions
) -> Float32Array:
    """Collective. The query vectors of all ranks, in rank order."""

    def encoded() -> Float32Array:
        side = QuerySide.of(saved, model, _row_settings(config), config.stream, questions.users)
        given = [questions.query_QD] if questions.query_QD is not None else []
        own = [side.encode(batch) for batch in questions.users]
        return np.concatenate([np.zeros((0, config.model.dim), np.float32), *given, *own])

    return np.ascontiguousarray(np.concatenate(comm.gather_objects(keep_result(comm, encoded))))


def _quality(
    comm: Collectives,
    config: FreshetConfig,
    saved: Saved,
    model: TwoTower,
    new_events: Callable[[], Sequence[pa.RecordBatch]],
    events: Sequence[pa.RecordBatch],
) -> Quality | None:
    """Collective. The data of the quality gate: new events, or recent ones if there are too few new ones."""

    def read(trained_on: bool) -> tuple[Sequence[pa.RecordBatch], QuerySide]:
        batches = events if trained_on else new_events()
        return batches, QuerySide.of(saved, model, _row_settings(config), config.stream, batches)

    for trained_on in (False, True):
        batches, side = keep_result(comm, partial(read, trained_on))
        asked = events_to_ask(batches, side, config, comm)
        if asked is not None:
            if trained_on and comm.rank == 0:
                _log.info(
                    "fewer than %d events came after the checkpoint (index.min_quality_events): the quality gate uses "
                    "earlier ones, which the candidate may have been trained on",
                    config.index.min_quality_events,
                )
            quality = quality_of(asked, side, version_store(config), config, comm)
            return replace(quality, trained_on=trained_on) if quality is not None else None
    return None


@contextmanager
def _attempt(comm: Collectives, config: FreshetConfig, check: Callable[[], None]) -> Iterator[Path]:
    """Collective. A folder of this attempt, which all ranks see and own together."""
    attempts = OwnedFolders(Path(config.storage_path) / ".publish", "attempt-")
    made: list[OwnedFolder] = []

    def make() -> Path:
        check()
        made.append(attempts.make())
        made[0].share()
        return made[0].path

    with ExitStack() as owned:
        try:
            path = on_first_rank(comm, make)
            if comm.rank != 0:
                owned.enter_context(share_folder(path))
            yield path
        finally:
            for folder in made:
                folder.remove()
