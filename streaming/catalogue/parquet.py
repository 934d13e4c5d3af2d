"""Items and users from Parquet files beside the events, so that no broker is needed."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from streaming.catalogue.records import CatalogueRecord, CatalogueUpdate, parse_items, parse_users
from streaming.config import StreamConfig
from streaming.events.dead_letter import DeadLetter
from streaming.events.faults import Reason
from streaming.events.mapping import FieldMapping
from streaming.events.position import Position
from streaming.events.quoting import described
from streaming.events.row_json import as_json, row_json
from streaming.events.schema import CATEGORIES, ITEM_ID, ITEM_SCHEMA, TITLE, USER_ID, USER_SCHEMA
from streaming.events.validation import KnownTextIds
from streaming.producing.catalogue import item_documents, user_documents
from streaming.sources.parquet_source import EVENTS_FILE, ITEMS_FILE, USERS_FILE, ParquetUnusable

_ROWS_AT_ONCE = 50_000


def has_catalogue(where: str) -> bool:
    """Whether `stream.parquet` also has items or users: it is a data set, or a file of either is beside the events."""
    folder = _folder(where)
    return any((folder / name).is_file() for name in (EVENTS_FILE, ITEMS_FILE, USERS_FILE))


class ParquetCatalogue:
    """The files `items.parquet` and `users.parquet` of a folder, read as `CatalogueReader` reads topics; both optional.

    Args:
        config: `parquet` names the folder, or a file in it; `user_attributes` are columns of the users.
        texts: where the texts of text ids are remembered.

    Attributes:
        dead_letters: records that could not be used; the caller takes them and clears the list.
        hints: plausible mistakes in usable records, by code; the caller takes them too.
        ids: of topics that were read; empty for files.
    """

    def __init__(self, config: StreamConfig, texts: KnownTextIds | None = None) -> None:
        self._config, self._texts = config, texts
        self.dead_letters: list[DeadLetter] = []
        self.hints: Counter[str] = Counter()
        self.ids: dict[str, str] = {}

    def read_to_end(self) -> CatalogueUpdate:
        """Everything that the files hold.

        Raises:
            ParquetUnusable: a file cannot be read; names it.
        """
        names = self._config.user_attributes
        of_items, of_users = FieldMapping.of_items(self._config), FieldMapping.of_users(self._config)
        items = self._read(
            ITEMS_FILE,
            of_items.names if of_items else [ITEM_ID, TITLE, CATEGORIES],
            item_documents,
            lambda records: parse_items(records, of_items, self._texts, self.hints),
            ITEM_SCHEMA,
        )
        users = self._read(
            USERS_FILE,
            of_users.names if of_users else [USER_ID, *names],
            pa.Table.to_pylist if of_users else user_documents,
            lambda records: parse_users(records, names, of_users, self._texts, self.hints),
            USER_SCHEMA,
        )
        return CatalogueUpdate(items, users)

    def poll(self) -> None:
        """Files gain nothing."""

    def positions(self) -> dict[str, dict[int, Position]]:
        """None: files are read whole."""
        return {}

    def text_of_deleted(self, topic: str, identifier: int) -> str:
        """The id as it is: files delete nothing."""
        return str(identifier)

    def close(self) -> None:
        """Nothing is open."""

    def _read(
        self,
        name: str,
        columns: Sequence[str],
        documents: Callable[[pa.Table], list[dict[str, Any]]],
        parse: Callable[[list[CatalogueRecord]], tuple[pa.Table, list[DeadLetter]]],
        schema: pa.Schema,
    ) -> pa.Table:
        file = _folder(self._config.parquet) / name
        found = [schema.empty_table()]
        for first, rows in _slices(file) if file.is_file() else ():
            # The other columns are not read.
            rows = rows.select([column for column in columns if column in rows.column_names])
            records = self._records(name, first, rows, documents)
            usable, dead = parse(records)
            found.append(usable)
            self.dead_letters += dead
        return pa.concat_tables(found)

    def _records(
        self, name: str, first: int, rows: pa.Table, documents: Callable[[pa.Table], list[dict[str, Any]]]
    ) -> list[CatalogueRecord]:
        """Rows as the records of a topic; an exception costs only the row that raised it."""
        try:
            return [
                _Record(name, first + n, orjson.dumps(document, default=as_json))
                for n, document in enumerate(documents(rows))
            ]
        except Exception as error:
            if rows.num_rows > 1:
                alone = (
                    self._records(name, first + n, rows.slice(n, 1), documents) for n in range(rows.num_rows)
                )
                return [record for one in alone for record in one]
            reason = Reason("undecodable", f"cannot be read: {described(error)}")
            original = row_json(rows.to_batches()[0], 0)
            self.dead_letters.append(DeadLetter(reason, name, 0, first, 0, original))
            return []


@dataclass(frozen=True)
class _Record:
    """A row as the equivalent record of a topic."""

    topic: str
    offset: int
    value: bytes
    partition: int = 0
    key: bytes | None = None


def _folder(where: str) -> Path:
    path = Path(where).expanduser()
    return path.parent if path.is_file() else path


def _slices(file: Path) -> Iterator[tuple[int, pa.Table]]:
    first = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches(_ROWS_AT_ONCE):
            yield first, pa.Table.from_batches([batch])
            first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise ParquetUnusable(f"{file} cannot be read: {error} (setting: stream.parquet)") from error
