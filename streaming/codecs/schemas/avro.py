"""Avro messages as Python objects, by the schema that they were written with."""

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

from streaming.codecs.schemas.packages import package
from streaming.events.quoting import described

_NAMED = ("record", "error", "enum", "fixed")


def avro_decoder(text: str, references: Mapping[str, str], which: str) -> Callable[[bytes], Any]:
    """Decodes messages without a header.

    Args:
        text: the schema as JSON.
        references: schemas that it refers to by name, each after those that it refers to itself.
        which: names the schema in errors.
    Raises:
        ValueError: the schema cannot be parsed, or lets a few bytes declare any number of values.
        StreamSettingError: fastavro is not installed.
    """
    fastavro = package("fastavro")
    named: dict[str, Any] = {}
    try:
        for other in references.values():
            fastavro.parse_schema(json.loads(other), named_schemas=named)
        parsed = fastavro.parse_schema(json.loads(text), named_schemas=named)
    except Exception as error:  # whatever the parser makes of a foreign schema
        raise ValueError(f"{which} cannot be parsed: {described(error)}") from error
    if any(_repeats_nothing(schema, named) for schema in (parsed, *named.values())):
        raise ValueError(f"{which} has an array of values without bytes, whose length nothing limits")
    reader = fastavro.schemaless_reader

    def decode(data: bytes) -> Any:
        source = io.BytesIO(data)
        value = reader(source, parsed)
        if source.tell() != len(data):
            raise ValueError(f"{len(data) - source.tell()} bytes follow it")
        return value

    return decode


def _repeats_nothing(schema: Any, named: Mapping[str, Any]) -> bool:
    """Whether an array's items take no bytes: a few bytes could then declare any number of them."""
    if isinstance(schema, list):
        return any(_repeats_nothing(one, named) for one in schema)
    if not isinstance(schema, dict):
        return False
    if schema.get("type") == "array" and _is_empty(schema.get("items"), named, ()):
        return True
    inner = [schema.get("items"), schema.get("values"), *(f.get("type") for f in schema.get("fields", ()))]
    return any(_repeats_nothing(one, named) for one in [*inner, schema.get("type")])


def _is_empty(schema: Any, named: Mapping[str, Any], above: tuple[str, ...]) -> bool:
    """Whether values of a schema take no bytes; one that holds itself without a union has no values at all."""
    if isinstance(schema, str):
        if schema in named and schema not in above:
            return _is_empty(named[schema], named, (*above, schema))
        return schema == "null" or schema in above
    if not isinstance(schema, dict):
        return False
    kind = schema.get("type")
    if kind in ("record", "error"):
        inside = (*above, str(schema.get("name")))
        return all(_is_empty(f.get("type"), named, inside) for f in schema.get("fields", ()))
    if kind in _NAMED:
        return kind == "fixed" and schema.get("size") == 0
    return _is_empty(kind, named, above)
