"""An EventSource in memory: the log of some partitions, all ready at once, bounded."""

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

from streaming.events.dead_letter import DeadLetter
from streaming.events.partitioner import key_hashes_of_users, partition_of_users
from streaming.events.position import Gap, Position, RowPlace
from streaming.events.schema import DECODED_SCHEMA, USER_ID, WEIGHT
from streaming.events.validation import Decoded


class MemorySource:
    """Reads some partitions of events in memory; the offset is the index in the partition, the row 0."""

    def __init__(
        self,
        log: Mapping[int, pa.RecordBatch],
        partitions: Iterable[int],
        start: Mapping[int, Position] | None = None,
    ) -> None:
        self._log = {p: log[p] for p in sorted(partitions)}
        self._taken = {p: (start or {}).get(p, Position(0, 0)).offset for p in self._log}

    @property
    def partitions(self) -> list[int]:
        return list(self._log)

    @property
    def finished(self) -> bool:
        return not any(self.ready_rows().values())

    @property
    def gaps(self) -> dict[int, list[Gap]]:
        return {}

    @property
    def topic_ids(self) -> dict[int, str]:
        return {}

    def came_from(self, place: RowPlace) -> tuple[str, str]:
        return "topic", ""

    def bound(self, end_offsets: Mapping[int, int]) -> None:
        raise NotImplementedError

    def ready_rows(self) -> dict[int, int]:
        return {p: rows.num_rows - self._taken[p] for p, rows in self._log.items()}

    def ended(self) -> frozenset[int]:
        return frozenset(self._log)

    def take(self, quota: Mapping[int, int]) -> Decoded:
        parts = [rows.slice(self._taken[p], quota.get(p, 0)) for p, rows in self._log.items()]
        for p, part in zip(self._log, parts, strict=True):
            self._taken[p] += part.num_rows
        return Decoded(pa.concat_batches(parts))

    def positions(self) -> dict[int, Position]:
        return {p: Position(taken, 0) for p, taken in self._taken.items()}

    def lag(self) -> dict[int, int]:
        return self.ready_rows()

    def lag_events(self) -> float:
        return sum(self.ready_rows().values())

    def wait(self, timeout_s: float) -> bool:
        return not self.finished

    def wait_full(self, quota: int, timeout_s: float) -> bool:
        return True

    def originals(self, places: Iterable[RowPlace]) -> dict[RowPlace, bytes]:
        return {}

    def close(self) -> None:
        pass


class NoDeadLetters:
    """A sink that must not be used."""

    def send(self, letters: Iterable[DeadLetter]) -> None:
        assert not list(letters), "usable events only"


def partitioned_log(events: pa.RecordBatch, partitions: int) -> dict[int, pa.RecordBatch]:
    """Events (EVENT_SCHEMA) as in a topic with this many partitions, in DECODED_SCHEMA."""
    home_N = partition_of_users(events[USER_ID].to_numpy(), partitions)
    return {p: _decoded(events.take(pa.array(np.flatnonzero(home_N == p))), p) for p in range(partitions)}


def _decoded(events: pa.RecordBatch, partition: int) -> pa.RecordBatch:
    count = events.num_rows
    columns = dict(zip(events.schema.names, events.columns, strict=True))
    columns[WEIGHT] = events[WEIGHT].fill_null(1.0)
    columns |= {
        "partition": pa.array(np.full(count, partition, np.int32)),
        "offset": pa.array(np.arange(count)),
        "row": pa.array(np.zeros(count, np.int32)),
        "append_ms": pa.array(np.full(count, 1_700_000_000_000)),
        "key_hash": pa.array(key_hashes_of_users(events[USER_ID].to_numpy())),
    }
    return pa.RecordBatch.from_pydict(columns, schema=DECODED_SCHEMA)
