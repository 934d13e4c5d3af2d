"""Reads a row group of a Parquet file, unless its declared size or its shared texts are too large when expanded."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from streaming.codecs.arrow_limits import repeated_bytes

# A column of nulls, or of one repeated value, takes no space in the file.
_VALUE_BYTES = 8


class RowGroupTooLarge(ValueError):
    """A row group declares or holds more than it may; names the setting."""


def read_row_group(file: Path, group: int, most_bytes: int) -> pa.Table:
    """A row group with all its columns.

    Args:
        file: a Parquet file.
        group: number of the row group in it.
        most_bytes: limit of its decoded size: `stream.max_row_group_bytes`.
    Raises:
        RowGroupTooLarge: it would be larger.
        pa.ArrowException, OSError: it cannot be read.
    """
    schema = pq.read_schema(file)
    texts = [field.name for field in schema if _is_text(field.type)]
    # As dictionaries, which hold each text once for all rows.
    with pq.ParquetFile(file, read_dictionary=texts) as opened:
        declared = opened.metadata.row_group(group)
        size = max(declared.total_byte_size, _VALUE_BYTES * declared.num_rows * declared.num_columns)
        _require(group, size, most_bytes)
        table = opened.read_row_group(group)
    shared = sum(repeated_bytes(chunk) for column in table.columns for chunk in column.chunks)
    _require(group, table.nbytes + shared, most_bytes)
    for place, name in enumerate(table.column_names):
        column = table.column(place)
        if pa.types.is_dictionary(column.type) and not pa.types.is_dictionary(schema.field(place).type):
            table = table.set_column(place, name, column.cast(schema.field(place).type))
    return table


def _require(group: int, size: int, most: int) -> None:
    if size > most:
        raise RowGroupTooLarge(
            f"row group {group} decodes to {size} bytes or more, more than stream.max_row_group_bytes={most}; "
            "write the file with smaller row groups, or raise the setting"
        )


def _is_text(kind: pa.DataType) -> bool:
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(is_text(kind) for is_text in texts)
