"""Reads events from Parquet files, with the same rules and code as those of a topic.

A position is (row group, row), where row groups are counted over all files in the order of their names. The events are
spread over `stream.parquet_partitions` by user, as in a topic.

A file has no broker time, and its modification time says nothing about its events. So `stream.max_future_s` does not
apply, and the validation of a row depends only on the files' content.
"""

import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from streaming.codecs import arrow_events
from streaming.codecs.codec import concatenate
from streaming.codecs.parquet_limits import read_row_group
from streaming.config import StreamConfig
from streaming.events.columns import cast
from streaming.events.mapping import FieldMapping
from streaming.events.position import Gap, Position, RowPlace
from streaming.events.schema import TIMESTAMP_MS
from streaming.events.times import implausible, time_column, times_in_ms
from streaming.events.validation import Decoded, KnownTextIds, ParsedEvents, Place, judge
from streaming.sources.row_queue import RowQueue

EVENTS_FILE, ITEMS_FILE, USERS_FILE = "interactions.parquet", "items.parquet", "users.parquet"
"""Files of a data set; in any folder, the last two hold no events."""
_BLOCKS_KEPT = 4
# The end of a Parquet file: the length of its footer, and "PAR1".
_FOOTER_END = 8

_log = logging.getLogger(__name__)


class ParquetUnusable(RuntimeError):
    """Files of events are missing or cannot be read; names the path and the setting."""


@dataclass(frozen=True)
class _RowGroup:
    """One row group, treated as a message."""

    file: Path
    group: int
    offset: int
    timestamp: int
    rows: int
    identity: str
    """Hash of the file's content, so that files of one name in two folders have separate dead letters."""
    value: bytes | None = None
    headers: Sequence[tuple[str, bytes]] | None = None


class ParquetSource:
    """Reads some partitions of a folder of Parquet files, or of one file; always bounded.

    Args:
        config: `parquet` names a file, a folder with interactions.parquet, or a folder of Parquet files.
        partitions: those to read, of `stream.parquet_partitions`.
        start: where to continue; a partition that is missing begins at the first row.
        watermark_ms: latest event time before the start, by partition, if known.
        texts: where the texts of text ids are remembered.
    Raises:
        ParquetUnusable: there is no file, or one lacks columns of an event; also raised later, for a row group that
            decodes to more than `stream.max_row_group_bytes`.
    """

    def __init__(
        self,
        config: StreamConfig,
        partitions: Iterable[int],
        start: Mapping[int, Position],
        *,
        watermark_ms: Mapping[int, int] | None = None,
        texts: KnownTextIds | None = None,
    ) -> None:
        self._config = config
        self._groups = _row_groups(config.parquet)
        self._queues = {p: RowQueue(start.get(p, Position(0, 0))) for p in sorted(partitions)}
        self._watermark_ms = dict(watermark_ms or {})
        self._needed = 1
        self._mapping, self._texts = FieldMapping.of_events(config), texts
        self._kept: OrderedDict[int, ParsedEvents] = OrderedDict()
        self._sizes: dict[int, int] = {}
        self._warned: set[Path] = set()

    @property
    def partitions(self) -> list[int]:
        """The partitions that this source reads, ascending."""
        return list(self._queues)

    @property
    def finished(self) -> bool:
        """Whether every row has been taken."""
        return len(self.ended()) == len(self._queues) and not any(q.ready for q in self._queues.values())

    @property
    def gaps(self) -> dict[int, list[Gap]]:
        """Files lose nothing."""
        return {}

    @property
    def topic_ids(self) -> dict[int, str]:
        """Empty, because files are not topics."""
        return {}

    def bound(self, end_offsets: Mapping[int, int]) -> None:
        """Not used: files have fixed ends and gain no partitions."""

    def ready_rows(self) -> dict[int, int]:
        """Rows that `take` could return now, by partition."""
        self._fill()
        return {p: queue.ready for p, queue in self._queues.items()}

    def ended(self) -> frozenset[int]:
        """Partitions whose rows are all taken or ready."""
        return frozenset(p for p, queue in self._queues.items() if queue.fetched >= len(self._groups))

    def take(self, quota: Mapping[int, int]) -> Decoded:
        """At most quota[p] rows of partition p; unusable rows count. In partition, then position order."""
        self._needed = max(self._needed, *quota.values(), 1)
        self._fill()
        pieces = [piece for p, queue in self._queues.items() for piece in queue.take(quota.get(p, 0))]
        self._fill()
        for queue in self._queues.values():
            queue.skip_gap(len(self._groups))
        return concatenate(pieces)

    def positions(self) -> dict[int, Position]:
        """The next row of each partition, after everything that was taken."""
        return {p: queue.position for p, queue in self._queues.items()}

    def lag(self) -> dict[int, int]:
        """Row groups between the position and the end, by partition."""
        return {p: len(self._groups) - queue.next_offset() for p, queue in self._queues.items()}

    def lag_events(self) -> float:
        """Rows that wait: those that are ready, and each partition's equal share of the row groups not read yet."""
        shares = (
            sum(group.rows for group in self._groups[queue.fetched :]) / self._config.parquet_partitions
            for queue in self._queues.values()
        )
        return sum(queue.ready for queue in self._queues.values()) + sum(shares)

    def wait(self, timeout_s: float) -> bool:
        """Reads until a row is ready or no more can come; returns whether a row is ready."""
        return any(self.ready_rows().values())

    def wait_full(self, quota: int, timeout_s: float) -> bool:
        """Reads until every partition has `quota` rows ready or has ended; returns True."""
        self._needed = quota
        self._fill()
        return True

    def came_from(self, place: RowPlace) -> tuple[str, str]:
        """The file's name, and a hash of its footer."""
        group = self._groups[place.offset]
        return group.file.name, group.identity

    def originals(self, places: Iterable[RowPlace]) -> dict[RowPlace, bytes]:
        """The row at each position as JSON."""
        return {place: self._parsed(place.offset).original(place.row) for place in places}

    def close(self) -> None:
        """Releases rows that were read ahead."""
        self._kept.clear()
        self._sizes.clear()

    def _fill(self) -> None:
        """Reads partitions side by side, so that a row group is usually decoded once for all of them."""
        while behind := [
            p
            for p, queue in self._queues.items()
            if queue.ready < self._needed and queue.fetched < len(self._groups)
        ]:
            p = min(behind, key=lambda partition: self._queues[partition].fetched)
            at = self._queues[p].fetched
            decoded = self._decode(p, at)
            self._queues[p].put(decoded, at + 1)

    def _decode(self, partition: int, at: int) -> Decoded:
        stream, group = self._config, self._groups[at]
        parsed = self._parsed(at)
        mine_N = np.flatnonzero(parsed.key_N % stream.parquet_partitions == partition)
        place = Place.of(stream, group.file.name, partition, stream.parquet_partitions)
        # A file has no append time that an event could be ahead of.
        place = replace(place, max_future_ms=0, topic_id=group.identity, texts=self._texts)
        known_ms = self._watermark_ms.get(partition, 0)
        decoded = judge(_only(parsed, mine_N), place, known_ms)
        self._watermark_ms[partition] = max(known_ms, decoded.latest_ms)
        return decoded

    def _parsed(self, at: int) -> ParsedEvents:
        if at in self._kept:
            self._kept.move_to_end(at)
            return self._kept[at]
        group = self._groups[at]
        try:
            table = self._with_times(
                read_row_group(group.file, group.group, self._config.max_row_group_bytes), group
            )
            table = table.combine_chunks()
            batches = table.to_batches()
            batch = batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
            parsed = arrow_events.parse_rows(batch, group, self._mapping)
        except (pa.ArrowException, ValueError, OSError) as error:
            raise ParquetUnusable(
                f"{group.file} holds no events: {error} (setting: stream.parquet)"
            ) from error
        self._kept[at], self._sizes[at] = parsed, batch.nbytes
        while len(self._kept) > 1 and self._keeps_too_much():
            oldest, _ = self._kept.popitem(last=False)
            del self._sizes[oldest]
        return parsed

    @property
    def _maps_times(self) -> bool:
        return self._mapping is not None and (
            TIMESTAMP_MS in self._mapping.mapped or self._mapping.unit != "ms"
        )

    def _keeps_too_much(self) -> bool:
        return len(self._kept) > _BLOCKS_KEPT or sum(self._sizes.values()) > self._config.max_row_group_bytes

    def _with_times(self, table: pa.Table, group: _RowGroup) -> pa.Table:
        """The table with a column `timestamp_ms` in milliseconds, whatever its time column is."""
        name = time_column(table.column_names)
        if name is None or self._maps_times:
            return table
        # A column of this name is cast row by row with the other columns; floats are rounded first.
        as_it_is = name == TIMESTAMP_MS and not pa.types.is_floating(table[name].type)
        if as_it_is:
            times = pa.chunked_array([cast(name, chunk).values for chunk in table[name].chunks], pa.int64())
        else:
            times = times_in_ms(table[name], name)
        if group.file not in self._warned:
            warning = implausible(times.drop_null().to_numpy(), name)
            if warning:
                self._warned.add(group.file)
                _log.warning("%s: %s", group.file, warning)
        if as_it_is:
            return table
        if name == TIMESTAMP_MS:
            return table.set_column(table.column_names.index(name), name, times)
        return table.append_column(TIMESTAMP_MS, times)


def _row_groups(where: str) -> list[_RowGroup]:
    if "://" in where:
        raise ParquetUnusable(
            f"{where} is an address, but files are read from folders (setting: stream.parquet)"
        )
    path = Path(where).expanduser()
    whole = path / EVENTS_FILE
    parts = (file for file in sorted(path.glob("*.parquet")) if file.name not in (ITEMS_FILE, USERS_FILE))
    files = [path] if path.is_file() else [whole] if whole.is_file() else list(parts)
    if not files:
        raise ParquetUnusable(f"{path} is not a Parquet file and contains none (setting: stream.parquet)")
    groups: list[_RowGroup] = []
    for file in files:
        try:
            footer = pq.ParquetFile(file).metadata
            rows = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
            identity = _identity(file)
        except (pa.ArrowException, OSError) as error:
            raise ParquetUnusable(f"{file} cannot be read: {error} (setting: stream.parquet)") from error
        written_ms = int(file.stat().st_mtime * 1000)
        first = len(groups)
        groups += [_RowGroup(file, n, first + n, written_ms, count, identity) for n, count in enumerate(rows)]
    return groups


def _identity(file: Path) -> str:
    """A hash of its footer: sizes, offsets and statistics of all columns."""
    with file.open("rb") as opened:
        opened.seek(-_FOOTER_END, os.SEEK_END)
        length = int.from_bytes(opened.read(4), "little")
        opened.seek(-_FOOTER_END - length, os.SEEK_END)
        return hashlib.sha256(opened.read(length)).hexdigest()[:8]


def _only(parsed: ParsedEvents, at_M: npt.NDArray[np.int64]) -> ParsedEvents:
    return ParsedEvents(
        parsed.events.take(pa.array(at_M)),
        parsed.offset_N[at_M],
        parsed.row_N[at_M],
        parsed.append_N[at_M],
        parsed.key_N[at_M],
        lambda m: parsed.original(int(at_M[m])),
        None if parsed.unfit_N is None else parsed.unfit_N[at_M],
        lambda m: parsed.why_unfit(int(at_M[m])),
        {name: texts.take(pa.array(at_M)) for name, texts in parsed.texts.items()},
    )
