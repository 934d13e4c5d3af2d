"""Messages of a schema as objects: Avro, Protobuf, and JSON, in Confluent's wire format or with schema files.

Confluent's wire format: a zero byte, the schema's id in four bytes, for Protobuf the path of the message type, data.
"""

from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from streaming.codecs.schemas.avro import avro_decoder
from streaming.codecs.schemas.json_schema import json_decoder
from streaming.codecs.schemas.protobuf import compiled, descriptor_set, framed_decoder, plain_decoder
from streaming.codecs.schemas.registry import SchemaRegistry
from streaming.config import StreamConfig, StreamSettingError
from streaming.events.quoting import described

Decode = Callable[[bytes], Any]
Kind = Literal["events", "items", "users"]
_HEADER_BYTES = 5
_FILE_SETTING: dict[Kind, str] = {
    "events": "schema_file",
    "items": "item_schema_file",
    "users": "user_schema_file",
}


class UnfitMessage(ValueError):
    """A message does not fit its schema; names the schema's id."""


def reader_of(config: StreamConfig, kind: Kind = "events") -> Decode | None:
    """Decodes messages without the header `freshet-encoding` into plain objects; None if they are JSON.

    The function raises `UnfitMessage`, and `RegistryUnavailable` if the registry does not answer.

    Args:
        config: the stream.
        kind: of the topic.
    Raises:
        StreamSettingError: a schema file or the registry's settings cannot be used, or a package is missing.
    """
    if config.message_format == "registry":
        return _RegistryReader(config).read
    setting = _FILE_SETTING[kind]
    if config.message_format == "freshet" or not getattr(config, setting):
        return None
    decode = _of_file(config.message_format, setting, getattr(config, setting))
    return lambda value: _decoded(decode, value, f"of stream.{setting}")


class _RegistryReader:
    """Decodes each message by the schema whose id it begins with."""

    def __init__(self, config: StreamConfig) -> None:
        self._registry = SchemaRegistry(config)
        self._decoders: dict[int, Decode] = {}

    def read(self, value: bytes) -> Any:
        """A message as plain objects: dates and times as ISO 8601 texts."""
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


def _decoded(decode: Decode, data: bytes, which: str) -> Any:
    try:
        return _plain_value(decode(data))
    except Exception as error:  # whatever the decoder makes of foreign bytes
        raise UnfitMessage(f"does not fit the schema {which}: {described(error)}") from error


def _decoder(registry: SchemaRegistry, number: int) -> Decode:
    found, which = registry.schema(number), f"schema {number}"
    if found.kind == "JSON":
        return json_decoder(found.text, found.references, which)
    if found.kind == "AVRO":
        return avro_decoder(found.text, found.references, which)
    if found.kind == "PROTOBUF":
        try:
            return framed_decoder(compiled(found.text, found.references))
        except StreamSettingError:
            raise
        except Exception as error:  # whatever the parser makes of a foreign schema
            raise ValueError(f"{which} cannot be parsed: {described(error)}") from error
    raise ValueError(f"{which} is of the kind {found.kind!r}, which is not supported")


def _of_file(form: str, setting: str, given: str) -> Decode:
    name, _, message = given.partition("#")
    path = Path(name).expanduser()
    try:
        if form == "avro":
            return avro_decoder(path.read_text(), {}, name)
        is_text = path.suffix == ".proto"
        files = (
            compiled(path.read_text(), folder=path.parent) if is_text else descriptor_set(path.read_bytes())
        )
        return plain_decoder(files, message)
    except StreamSettingError:
        raise
    except Exception as error:  # whatever the parser makes of a foreign schema
        raise StreamSettingError(f"stream.{setting}={given} cannot be used: {error}") from error


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
