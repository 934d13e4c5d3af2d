"""Records of the users' and items' topics: rank 0 reads them, and every rank applies them at the same step."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa

from cluster.collectives import Collectives
from cluster.training.intake.forgetting import NotFound, forget_deleted
from cluster.training.state.run import TrainingRun
from streaming.catalogue.parquet import ParquetCatalogue, has_catalogue
from streaming.catalogue.reader import CatalogueReader
from streaming.catalogue.records import CatalogueUpdate
from streaming.config import StreamConfig
from streaming.events.schema import ITEM_SCHEMA, USER_SCHEMA
from streaming.kafka.outage import patiently
from streaming.kafka.topics import BrokerUnavailable

_POLL_EVERY_S = 0.5
_log = logging.getLogger(__name__)


class CatalogueFeed:
    """Passes the catalogue's records to a run.

    Args:
        config: the topics.
        comm: of all ranks.
        run: at its start; records since its positions are read at once.
    """

    def __init__(self, config: StreamConfig, comm: Collectives, run: TrainingRun) -> None:
        self._config, self._comm = config, comm
        self._pending: CatalogueUpdate | None = None
        self._polled_s = 0.0
        if comm.rank == 0:
            self._reader, self._pending = patiently(config, lambda: self._opened(run))
        self._first = CatalogueUpdate(ITEM_SCHEMA.empty_table(), USER_SCHEMA.empty_table())
        if comm.exchange(np.array([float(self._pending is not None)]))[0, 0]:
            self._first = self.apply(run)

    def take_first(self) -> CatalogueUpdate:
        """The records that were read at once; they are not kept."""
        first, self._first = (
            self._first,
            CatalogueUpdate(ITEM_SCHEMA.empty_table(), USER_SCHEMA.empty_table()),
        )
        return first

    def _opened(self, run: TrainingRun) -> tuple[CatalogueReader | ParquetCatalogue, CatalogueUpdate]:
        if self._config.parquet and has_catalogue(self._config.parquet):
            files = ParquetCatalogue(self._config, run.texts)
            return files, files.read_to_end()
        reader = CatalogueReader(
            self._config, run.catalogue_positions, run.stream.catalogue_ids, texts=run.texts
        )
        try:
            return reader, self._first_records(reader, run)
        except BrokerUnavailable:
            reader.close()
            raise

    def _first_records(self, reader: CatalogueReader, run: TrainingRun) -> CatalogueUpdate:
        """Apply all records since the checkpoint, after values of new attributes from older records."""
        update = reader.read_to_end()
        if not run.reread_users:
            return update
        known = CatalogueReader.last_users(self._config, run.catalogue_positions)
        return CatalogueUpdate(items=update.items, users=pa.concat_tables([known, update.users]))

    def waiting(self, now: float) -> bool:
        """Whether there are records to apply; checks twice a second (rank 0)."""
        if self._pending is None and now - self._polled_s >= _POLL_EVERY_S:
            self._polled_s = now
            self._pending = self._reader.poll()
        return self._pending is not None

    def apply(self, run: TrainingRun) -> CatalogueUpdate:
        """Collective. Every rank removes what was deleted and adds what is new; returns the records."""
        payload = self._pending.to_bytes() if self._pending is not None else b""
        update = CatalogueUpdate.from_bytes(self._comm.broadcast_bytes(payload))
        goes_on = bool(run.catalogue_positions)
        not_found = forget_deleted(run, update, self._comm)
        run.catalogue.apply(update)
        if goes_on and self._comm.rank == 0:
            self._say(run, not_found)
        if self._comm.rank == 0:
            run.catalogue_read(self._reader.positions(), self._reader.ids)
        self._pending = None
        return update

    def _say(self, run: TrainingRun, not_found: NotFound) -> None:
        """Report deletions without a match, except in a run that reads the topics from their beginning (rank 0)."""
        topics = {"user": self._config.users_topic, "item": self._config.items_topic}
        said = not_found.said(lambda kind, i: self._reader.text_of_deleted(topics[kind], i))
        if said:
            run.notify(said)
            _log.warning("%s", said)

    def send_dead_letters(self, run: TrainingRun) -> None:
        """Records that could not be used (rank 0; other ranks have none)."""
        if self._comm.rank == 0:
            run.dead_letters.send(self._reader.dead_letters)
            run.faults.update(letter.code for letter in self._reader.dead_letters)
            self._reader.dead_letters.clear()
            run.faults.update(self._reader.hints)
            self._reader.hints.clear()
