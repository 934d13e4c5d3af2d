"""What a partition remembers of past events to validate the next ones: its watermark and its last event ids.

Shapes: N rows.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from streaming.arrays import BoolArray
from streaming.batches.event_ids import KEY_HASH as WINDOW_KEY
from streaming.batches.event_ids import EventIdWindow
from streaming.config import StreamConfig
from streaming.events.schema import EVENT_ID, KEY_HASH, PARTITION, TIMESTAMP_MS

_WATERMARK = b"watermark_ms"


class Admission:
    """The memory of the partitions that one worker reads; part of the checkpoint, because results depend on it.

    Attributes:
        watermark_ms: latest event time of each partition, for those that had a usable row.
    """

    def __init__(self, config: StreamConfig) -> None:
        self._length = config.duplicate_window
        self._windows: dict[int, EventIdWindow] = {}
        self.watermark_ms: dict[int, int] = {}

    def admit(self, rows: pa.RecordBatch) -> BoolArray:
        """Which rows are duplicates: their event id is one of the last `stream.duplicate_window` of the partition.

        Args:
            rows: DECODED_SCHEMA (n,), in partition, then position order; they continue where the last call ended.
        Returns:
            bool (n,).
        """
        partition_N = rows[PARTITION].to_numpy()
        duplicate_N = np.zeros(rows.num_rows, np.bool_)
        # Rows are in partition order, so each partition is one range.
        start_P = np.flatnonzero(np.diff(partition_N, prepend=-1))
        end_P = np.append(start_P, rows.num_rows)[1:]
        time_N = rows[TIMESTAMP_MS].to_numpy()
        has_ids = self._length > 0 and rows[EVENT_ID].null_count < rows.num_rows
        for start, end in zip(start_P.tolist(), end_P.tolist(), strict=True):
            partition = int(partition_N[start])
            known = self.watermark_ms.get(partition, 0)
            self.watermark_ms[partition] = max(known, int(time_N[start:end].max()))
            if has_ids:
                stretch = rows.slice(start, end - start)
                duplicate_N[start:end] = self._window(partition).admit(
                    stretch[EVENT_ID], stretch[KEY_HASH].to_numpy()
                )
        return duplicate_N

    def to_table(self, partition: int) -> pa.Table:
        """For the checkpoint: the window of a partition, with the watermark as schema metadata."""
        watermark = str(self.watermark_ms.get(partition, 0)).encode()
        table = self._windows.get(partition, EventIdWindow(1)).to_table()
        return table.replace_schema_metadata({_WATERMARK: watermark})

    def load(self, partition: int, table: pa.Table) -> None:
        """Restores what `to_table` returned for the same partition."""
        watermark_ms = int((table.schema.metadata or {}).get(_WATERMARK, b"0"))
        if watermark_ms:
            self.watermark_ms[partition] = watermark_ms
        if self._length and table.num_rows:
            self._window(partition).load(table)

    def load_moved(self, partition: int, partitions: int, tables: Iterable[pa.Table]) -> None:
        """Takes over the ids of this partition's users from the windows before the topic gained partitions.

        The watermark starts again, because no earlier partition had exactly these users.
        """
        for table in tables:
            home_N = table[WINDOW_KEY].to_numpy() % partitions
            if self._length and (home_N == partition).any():
                self._window(partition).load(table.filter(pa.array(home_N == partition)))

    def _window(self, partition: int) -> EventIdWindow:
        return self._windows.setdefault(partition, EventIdWindow(self._length))
