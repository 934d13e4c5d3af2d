"""The partitions that a rank reads, of a topic that may gain partitions or of Parquet files."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.collectives import Collectives
from cluster.config import FreshetConfig
from cluster.training.intake.catalogue_feed import CatalogueFeed
from cluster.training.state.run import TrainingRun
from streaming.catalogue.records import CatalogueUpdate
from streaming.kafka.growth import Growth, TopicWatch
from streaming.kafka.outage import patiently
from streaming.repartitioning.repartitioner import Repartitioner, create_own_topic
from streaming.sources.backfill import topic_range
from streaming.sources.kafka_source import KafkaSource, partitions_of
from streaming.sources.parquet_source import ParquetSource


class Intake:
    """Opens the stream of a run, and opens it again when the topic has grown.

    Args:
        config: `stream` names the source.
        comm: of all ranks.
    """

    def __init__(self, config: FreshetConfig, comm: Collectives) -> None:
        self._config, self._comm = config, comm
        self._ends: Mapping[int, int] | None = None
        self._watch: TopicWatch | None = None
        self._feed: CatalogueFeed | None = None
        self.growth: Growth | None = None
        """The topic's new size, once every rank knows it; its earlier partitions are then read to their ends."""
        self._copying: Repartitioner | None = None
        if config.stream.partition_by == "repartition":
            if comm.rank == 0:
                self._copying = self._copied()
            comm.gather_objects(None)

    def _copied(self) -> Repartitioner:
        """Rank 0 copies what there is now, and follows the topic unless the run is bounded."""
        stream = self._config.stream
        patiently(stream, lambda: create_own_topic(stream))
        copying = Repartitioner(stream)
        if self._config.train.bounded:
            copying.run_to_end()
        else:
            copying.start()
        return copying

    def count_partitions(self) -> int:
        """The current number of the topic's partitions, or that of the files.

        Raises:
            TopicMissing: there is no such topic.
        """
        stream = self._config.stream
        if stream.parquet:
            return stream.parquet_partitions
        return len(patiently(stream, lambda: partitions_of(stream, stream.interactions_topic)))

    def choose_range(self, run: TrainingRun, *, resumed: bool) -> None:
        """Collective. Find where the topic ends for this run, and where partitions without positions begin."""
        stream = self._config.stream
        if stream.parquet:
            return
        bounded = self._config.train.bounded
        found = None
        if self._comm.rank == 0:
            found = patiently(stream, lambda: topic_range(stream, bounded=bounded))
        whole = self._comm.gather_objects(found)[0]
        self._ends = whole.end
        if not resumed and stream.from_time:
            run.begin_at({p: whole.start[p] for p in run.partitions})

    def open_catalogue(self, run: TrainingRun) -> CatalogueUpdate:
        """Collective. Apply the catalogue's records since the run's positions; returns them."""
        self._feed = CatalogueFeed(self._config.stream, self._comm, run)
        return self._feed.take_first()

    def catalogue_waiting(self, now: float) -> bool:
        """Whether there are catalogue records to apply (rank 0)."""
        if self._copying is not None:
            self._copying.check()
        return self._open_feed.waiting(now)

    def apply_catalogue(self, run: TrainingRun) -> CatalogueUpdate:
        """Collective. Apply these records; returns them."""
        return self._open_feed.apply(run)

    def send_dead_letters(self, run: TrainingRun) -> None:
        """Send unusable catalogue records to the dead-letter topic (rank 0)."""
        self._open_feed.send_dead_letters(run)

    def open(self, run: TrainingRun) -> None:
        """Attach the stream to a run, at its positions."""
        stream, spread_over = self._config.stream, run.stream.partitions
        watermark_ms = run.stream.admission.watermark_ms
        if stream.parquet:
            run.open(
                ParquetSource(
                    stream, run.partitions, run.positions, watermark_ms=watermark_ms, texts=run.texts
                )
            )
            return
        source = patiently(
            stream,
            lambda: KafkaSource(
                stream,
                run.partitions,
                run.positions,
                self._ends,
                watermark_ms=watermark_ms,
                topic_ids=run.stream.topic_ids,
                spread_over=spread_over,
                texts=run.texts,
            ),
        )
        run.open(source)
        run.note_origin()
        run.note_gaps()
        if self._ends is not None:
            grown = len(self._ends) > spread_over
            self.growth = Growth(len(self._ends), self._ends) if grown else None
        elif self._comm.rank == 0:
            self._watch = TopicWatch(stream, spread_over)

    @property
    def growth_found(self) -> bool:
        """Whether the topic has gained partitions that the other ranks do not know about yet (rank 0)."""
        return self.growth is None and self._watch is not None and self._watch.found is not None

    @property
    def bounded(self) -> bool:
        """Whether the open partitions have ends; a held partition has none."""
        return bool(self._config.stream.parquet) or self._ends is not None or self.growth is not None

    def bound(self, run: TrainingRun) -> None:
        """Collective. Make the open partitions end where the new ones begin."""
        found = self._watch.found if self._watch is not None else None
        self.growth = self._comm.gather_objects(found)[0]
        assert self.growth is not None
        run.source.bound(self.growth.ends)

    def open_grown(self, run: TrainingRun) -> None:
        """Attach the stream to a run over the partitions of `growth`."""
        self._stop_watching()
        self.growth = None
        self.open(run)

    @property
    def _open_feed(self) -> CatalogueFeed:
        assert self._feed is not None, "open_catalogue() comes first"
        return self._feed

    def close(self) -> None:
        """Stop watching the topic, and copying into it."""
        if self._copying is not None:
            self._copying.close()
        self._stop_watching()

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.close()
