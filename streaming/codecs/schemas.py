"""Messages of a schema as objects: Avro, Protobuf, and JSON, in Confluent's wire format or with one schema file.

Confluent's wire format: a zero byte, the schema's id in four bytes, for Protobuf the path of the message type, data.
"""

import base64
import importlib
import io
import json
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from streaming.codecs.registry import SchemaRegistry
from streaming.config import StreamConfig, StreamSettingError
from streaming.events.quoting import described

Decode = Callable[[bytes], Any]
_HEADER_BYTES = 5
_MOST_VARINT_BYTES = 10
_ZERO_SIZE = ("null",)
_TIMESTAMP = "google.protobuf.Timestamp"


class UnfitMessage(ValueError):
    """A message does not fit its schema; names the schema's id."""


class SchemaReader:
    """Decodes the values of messages that have no header `freshet-encoding`.

    Args:
        config: `message_format` registry or avro.
    Raises:
        StreamSettingError: the schema file cannot be used, or a package is missing.
    """

    def __init__(self, config: StreamConfig) -> None:
        self._registry = SchemaRegistry(config)
        self._decoders: dict[int, Decode] = {}
        self._plain = _of_file(config.schema_file) if config.message_format == "avro" else None

    def read(self, value: bytes) -> Any:
        """A message as plain objects: dates and times as ISO 8601 texts.

        Raises:
            UnfitMessage: it does not fit its schema, or there is no such schema.
            RegistryUnavailable: the registry does not answer.
        """
        if self._plain is not None:
            return _decoded(self._plain, value, "of stream.schema_file")
        if len(value) < _HEADER_BYTES or value[0] != 0:
            raise UnfitMessage(
                "no schema id: the message does not begin with a zero byte and four bytes of a schema's id "
                "(stream.message_format=registry)"
            )
        number = int.from_bytes(value[1:_HEADER_BYTES], "big")
        if number not in self._decoders:
            try:
                self._decoders[number] = _decoder(self._registry, number)
            except StreamSettingError:
                raise
            except ValueError as error:
                raise UnfitMessage(str(error)) from error
        return _decoded(self._decoders[number], value[_HEADER_BYTES:], str(number))


def reader_of(config: StreamConfig) -> Decode | None:
    """Decodes messages of a stream by their schemas; None if they need none.

    Raises:
        StreamSettingError: the schema file cannot be used, or a package is missing.
    """
    return None if config.message_format == "freshet" else SchemaReader(config).read


def _decoded(decode: Decode, data: bytes, which: str) -> Any:
    try:
        return _plain_value(decode(data))
    except Exception as error:  # whatever the decoder makes of foreign bytes
        raise UnfitMessage(f"does not fit the schema {which}: {described(error)}") from error


def _decoder(registry: SchemaRegistry, number: int) -> Decode:
    found = registry.schema(number)
    if found.kind == "JSON":
        return orjson.loads
    if found.kind == "AVRO":
        return _avro(json.loads(found.text), f"schema {number}")
    if found.kind == "PROTOBUF":
        return _protobuf(base64.b64decode(found.text), f"schema {number}")
    raise ValueError(f"schema {number} is of the kind {found.kind!r}, which is not supported")


def _of_file(name: str) -> Decode:
    try:
        return _avro(json.loads(Path(name).expanduser().read_text()), name)
    except (OSError, ValueError) as error:
        raise StreamSettingError(f"stream.schema_file={name} cannot be used: {error}") from error


def _avro(schema: Any, which: str) -> Decode:
    fastavro = _package("fastavro")
    try:
        parsed = fastavro.parse_schema(schema)
    except Exception as error:
        raise ValueError(f"{which} cannot be parsed: {described(error)}") from error
    if _repeats_nothing(schema):
        raise ValueError(f"{which} has an array of values without bytes, whose length nothing limits")
    reader = fastavro.schemaless_reader

    def decode(data: bytes) -> Any:
        source = io.BytesIO(data)
        value = reader(source, parsed)
        if source.tell() != len(data):
            raise ValueError(f"{len(data) - source.tell()} bytes follow it")
        return value

    return decode


def _repeats_nothing(schema: Any) -> bool:
    """Whether an array's items take no bytes: a few bytes could then declare any number of them."""
    if isinstance(schema, list):
        return any(map(_repeats_nothing, schema))
    if not isinstance(schema, dict):
        return False
    kind = schema.get("type")
    if kind == "array" and _is_empty(schema.get("items")):
        return True
    inner = [schema.get("items"), schema.get("values"), *(f.get("type") for f in schema.get("fields", ()))]
    return any(map(_repeats_nothing, [*inner, kind]))


def _is_empty(schema: Any) -> bool:
    if isinstance(schema, dict):
        if schema.get("type") == "record":
            return all(_is_empty(f.get("type")) for f in schema.get("fields", ()))
        return _is_empty(schema.get("type")) or (schema.get("type") == "fixed" and schema.get("size") == 0)
    return schema in _ZERO_SIZE if isinstance(schema, str) else False


def _protobuf(serialized: bytes, which: str) -> Decode:
    descriptor = _package("google.protobuf.descriptor_pb2")
    pools, factory = _package("google.protobuf.descriptor_pool"), _package("google.protobuf.message_factory")
    _package("google.protobuf.timestamp_pb2")
    try:
        file = descriptor.FileDescriptorProto.FromString(serialized)
        file.name = file.name or "schema.proto"
        pool = pools.DescriptorPool()
        for name in file.dependency:
            known = pools.Default().FindFileByName(name)
            pool.AddSerializedFile(known.serialized_pb)
        pool.AddSerializedFile(file.SerializeToString())
        found = pool.FindFileByName(file.name)
    except Exception as error:
        raise ValueError(f"{which} cannot be parsed: {described(error)}") from error
    top = [message.name for message in file.message_type]

    def decode(data: bytes) -> Any:
        path, at = _message_path(data)
        kind = found.message_types_by_name[top[path[0]]]
        for place in path[1:]:
            kind = kind.nested_types[place]
        return _object(factory.GetMessageClass(kind).FromString(data[at:]))

    return decode


def _message_path(data: bytes) -> tuple[list[int], int]:
    """Indexes of the message type in its file, and where the message begins; a single zero is the first type."""
    count, at = _zigzag(data, 0)
    if count == 0:
        return [0], at
    path = []
    for _ in range(count):
        place, at = _zigzag(data, at)
        path.append(place)
    return path, at


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(_MOST_VARINT_BYTES):
        byte = data[at + shift]
        number |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at + shift + 1
    raise ValueError("a number of more than ten bytes")


def _object(message: Any) -> Any:
    """A Protobuf message with its own field names; numbers stay numbers."""
    if message.DESCRIPTOR.full_name == _TIMESTAMP:
        return message.ToJsonString()
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            found[field.name] = {str(key): value[key] for key in value}
        elif field.type == field.TYPE_MESSAGE:
            found[field.name] = (
                _object(value) if hasattr(value, "ListFields") else [_object(one) for one in value]
            )
        elif field.type == field.TYPE_ENUM:
            numbers = field.enum_type.values_by_number
            many = not isinstance(value, int)
            names = [numbers[n].name if n in numbers else n for n in (value if many else [value])]
            found[field.name] = names if many else names[0]
        else:
            found[field.name] = value if isinstance(value, str | bytes | int | float) else list(value)
    return found


def _plain_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(inner) for inner in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() and abs(value) < 2**63 else float(value)
    if value is None or isinstance(value, str | int | float):
        return value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise StreamSettingError(
            f"stream.message_format needs the package {name.partition('.pb')[0]!r}: install freshet[formats]"
        ) from error
