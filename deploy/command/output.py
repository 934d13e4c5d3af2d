"""A verb's result: its fields on the terminal, and a JSON file that is replaced atomically."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from deploy.command.errors import CommandError
from deploy.command.terminal import say
from deploy.command.times import local_time
from retrieval.storage.durable import replacing


class OutputUnwritable(CommandError):
    """A requested file cannot be written; names it."""


def plain(value: Any) -> Any:
    """The value as plain JSON types.

    Dataclasses become objects, arrays lists, paths text, and non-finite numbers null.

    Raises:
        TypeError: a value that has no JSON form; names its type.
    """
    return orjson.loads(encoded(value))


def encoded(value: Any, option: int = 0) -> bytes:
    """The value as JSON on one line, or formatted by orjson's options; see `plain`."""
    option |= orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    return orjson.dumps(value, default=_for_json, option=option)


def _for_json(value: Any) -> Any:
    """Converts values that orjson does not encode."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "_asdict"):  # a named tuple
        return value._asdict()
    if isinstance(value, set | frozenset):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):  # an array that is not contiguous
        return value.tolist()
    raise TypeError


def write_json(path: Path | None, value: Any) -> None:
    """Replace `path` by the value as JSON, atomically; does nothing without a path.

    Raises:
        OutputUnwritable: the folder cannot be made or written.
    """
    if path is None:
        return
    content = encoded(value, orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file that replaces `path` atomically if the block ends without an error; its mode follows the umask.

    Raises:
        OutputUnwritable: the folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise OutputUnwritable(f"{path} cannot be written: {error}") from error


def print_fields(result: dict[str, Any]) -> None:
    """Print a result, one field per line; nested values are only in the JSON file."""
    shown = {name: value for name, value in result.items() if not isinstance(value, dict | list)}
    if "time_s" in shown:
        shown = {"time": local_time(shown.pop("time_s")), **shown}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        if isinstance(value, float):
            value = f"{value:,.3f}"
        elif isinstance(value, int) and not isinstance(value, bool):
            value = f"{value:,}"
        say(f"{name:{width}}  {value}")
