"""JSON messages, validated against their schema."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from streaming.codecs.schemas.packages import package
from streaming.events.quoting import described


def json_decoder(text: str, references: Mapping[str, str], which: str) -> Callable[[bytes], Any]:
    """Decodes and validates messages.

    Args:
        text: the schema.
        references: schemas that it refers to, by the name in `$ref`; nothing else is ever fetched.
        which: names the schema in errors.
    Raises:
        ValueError: the schema cannot be used, or refers to one that is not among the references.
        StreamSettingError: jsonschema-rs is not installed.
    """
    schemas = package("jsonschema_rs")

    def referred(address: str) -> Any:
        for name, other in references.items():
            if address == name or address.endswith(f"/{name.lstrip('/')}"):
                return json.loads(other)
        raise ValueError("it is not among the references of the schema")

    try:
        # Patterns without backtracking: a foreign pattern cannot take exponential time.
        patterns = schemas.RegexOptions()
        validate = schemas.validator_for(
            json.loads(text), retriever=referred, pattern_options=patterns
        ).validate
    except schemas.ValidationError as error:
        raise ValueError(f"{which} cannot be parsed: {error.message}") from None
    except ValueError as error:
        raise ValueError(f"{which} cannot be parsed: {described(error)}") from error

    def decode(data: bytes) -> Any:
        value = orjson.loads(data)
        try:
            validate(value)
        except schemas.ValidationError as error:
            raise ValueError(f"{error.message} (at {_place(error.instance_path)})") from None
        return value

    return decode


def _place(path: list[Any]) -> str:
    return ".".join(map(str, path)) or "the message itself"
