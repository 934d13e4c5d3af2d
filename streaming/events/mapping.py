"""Takes the fields of an event, an item or a user from where another producer's records have them.

Separate from decoding: a decoded JSON object or Arrow batch goes in, and one with Freshet's names comes out. Without a
setting that maps anything there is no mapping, and nothing is done.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from streaming.config import StreamConfig
from streaming.events.faults import Reason, code_of
from streaming.events.schema import (
    ACTION,
    ATTRIBUTES,
    CATEGORIES,
    EVENT_SCHEMA,
    ITEM_ID,
    TIMESTAMP_MS,
    TITLE,
    USER_ID,
)
from streaming.events.time_units import column_in_ms, milliseconds
from streaming.field_paths import Path, paths_of, text_of_path


@dataclass(frozen=True)
class FieldMapping:
    """Where the fields of one kind of record are.

    Attributes:
        setting: the setting that names the paths.
        paths: of every field that is read, mapped or not.
        mapped: names of the fields that the setting names.
        unit: of times; only events have any.
        default_action: of events without an action; empty for none.
        whole: what is needed of a record that is itself one of the fields.
    """

    setting: str
    paths: Mapping[str, Path]
    mapped: frozenset[str]
    unit: str = "ms"
    default_action: str = ""
    whole: Sequence[str] = ()

    @classmethod
    def of_events(cls, config: StreamConfig) -> Self | None:
        """The mapping of events; None if the settings map nothing."""
        has_schemas = config.message_format != "freshet"
        if not (config.fields or config.default_action or config.timestamp_unit != "ms" or has_schemas):
            return None
        return cls(
            "stream.fields",
            *_with_own(config.fields, EVENT_SCHEMA.names),
            config.timestamp_unit,
            config.default_action,
        )

    @classmethod
    def of_items(cls, config: StreamConfig) -> Self | None:
        """The mapping of items; None if the settings map nothing."""
        if not config.item_fields:
            return None
        return cls("stream.item_fields", *_with_own(config.item_fields, (ITEM_ID, TITLE, CATEGORIES)))

    @classmethod
    def of_users(cls, config: StreamConfig) -> Self | None:
        """The mapping of users; None if the settings map nothing."""
        if not config.user_fields:
            return None
        paths, mapped = _with_own(config.user_fields, (USER_ID, ATTRIBUTES))
        return cls("stream.user_fields", paths, mapped, whole=config.user_attributes)

    @property
    def names(self) -> Sequence[str]:
        """Names of the outermost fields of a record that are needed."""
        inner = [path[0] for path in self.paths.values() if path]
        return inner if len(inner) == len(self.paths) else [*inner, *self.whole]

    def event(self, decoded: Any) -> Any:
        """A decoded JSON event with Freshet's names, and its time in milliseconds; not an object: unchanged."""
        if type(decoded) is not dict:
            return decoded
        found = self._found(decoded)
        if TIMESTAMP_MS in found:
            found[TIMESTAMP_MS] = milliseconds(found[TIMESTAMP_MS], self.unit)
        if self.default_action and not found.get(ACTION):
            found[ACTION] = self.default_action
        return found

    def record(self, decoded: dict[str, Any]) -> dict[str, Any]:
        """A decoded item or user with Freshet's names.

        A single category stands for a list of one. Attributes with a path of their own replace those of the object.
        """
        found = self._found(decoded)
        if type(found.get(CATEGORIES)) in (str, int):
            found[CATEGORIES] = [found[CATEGORIES]]
        own = {name: found.pop(name) for name in self.paths if name in found and name not in _KNOWN}
        attributes = found.get(ATTRIBUTES)
        if own and (attributes is None or type(attributes) is dict):
            found[ATTRIBUTES] = {**(attributes or {}), **own}
        return found

    def columns(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The columns of an event, under Freshet's names; those that the batch lacks are left out.

        Args:
            batch: of any schema; nested fields are members of struct columns.
        """
        found = {name: self.column(batch, name) for name in self.paths}
        kept = {name: column for name, column in found.items() if column is not None}
        if TIMESTAMP_MS in kept:
            kept[TIMESTAMP_MS] = column_in_ms(kept[TIMESTAMP_MS], self.unit)
        if self.default_action:
            kept[ACTION] = self._actions(kept.get(ACTION), batch.num_rows)
        return pa.RecordBatch.from_arrays(list(kept.values()), names=list(kept))

    def column(self, batch: pa.RecordBatch, name: str) -> pa.Array | None:
        """The column that a field is read from, as it is; None if the batch lacks it."""
        first, *inner = self.paths[name] or ("",)
        if batch.schema.names.count(first) != 1:
            return None
        column = batch.column(first)
        for key in inner:
            if not pa.types.is_struct(column.type) or column.type.get_field_index(key) < 0:
                return None
            column = pc.struct_field(column, [column.type.get_field_index(key)])
        return column

    def explained(self, reason: str) -> str:
        """A reason that begins with, or misses, one of Freshet's names; says where it was looked for."""
        for name in self.paths:
            if reason.startswith(f"{name} ") or f"column {name} is missing" in reason:
                said = [f"{self.setting} reads it from {text_of_path(self.paths[name])}"] * (
                    name in self.mapped
                )
                if name == TIMESTAMP_MS and "is missing" not in reason:
                    said.append(f"stream.timestamp_unit={self.unit}")
                return Reason(code_of(reason), f"{reason} ({'; '.join(said)})") if said else reason
        return reason

    def edited(self, record: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
        """A record of the producer with another value of one of Freshet's fields."""
        edited: dict[str, Any] = _put(record, self.paths[name], value)
        return edited

    def _found(self, decoded: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name, path in self.paths.items():
            value: Any = decoded
            for key in path:
                if type(value) is list:
                    value = [one.get(key) for one in value if type(one) is dict]
                    continue
                value = value.get(key) if type(value) is dict else None
                if value is None:
                    break
            if value is not None:
                found[name] = value
        return found

    def _actions(self, actions: pa.Array | None, rows: int) -> pa.Array:
        default = pa.scalar(self.default_action, pa.string())
        if actions is None or pa.types.is_null(actions.type):
            return pa.repeat(default, rows)
        if pa.types.is_large_string(actions.type) or pa.types.is_dictionary(actions.type):
            actions = actions.cast(pa.string())
        if not pa.types.is_string(actions.type):
            return actions
        return pc.if_else(pc.fill_null(pc.equal(actions, ""), True), default, actions)


_KNOWN = {*EVENT_SCHEMA.names, TITLE, CATEGORIES, ATTRIBUTES}


def _with_own(entries: Sequence[str], own: Sequence[str]) -> tuple[dict[str, Path], frozenset[str]]:
    """Paths of all fields: those that the setting names, and the others under their own names."""
    named = paths_of(entries)
    return {name: (name,) for name in own} | named, frozenset(named)


def _put(record: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    inner = record if type(record) is dict else {}
    return {**inner, path[0]: _put(inner.get(path[0]), path[1:], value)}
