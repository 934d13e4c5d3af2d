"""A verb's result: its fields on the terminal, and a JSON file that is either the old one or the whole new one."""

from __future__ import annotations

import dataclasses
import json
import math
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deploy.command.errors import CommandError
from deploy.command.terminal import say
from deploy.command.times import local_time


class OutputUnwritable(CommandError):
    """A file that was asked for cannot be written; names it."""


def plain(value: Any) -> Any:
    """The value as JSON knows it: dataclasses become objects, non-finite numbers null.

    NumPy scalars and arrays go through their `tolist`, paths become text.

    Raises:
        TypeError: a value that none of these rules covers; names its type.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return _plain_container(value)


def _plain_container(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise TypeError(f"no JSON form for a value of type {type(value).__name__}")


def write_json(path: Path | None, value: Any) -> None:
    """Replace `path` by the value as JSON, atomically; does nothing without a path.

    Raises:
        OutputUnwritable: the folder cannot be made or written.
    """
    if path is None:
        return
    text = json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n"
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file to write, which replaces `path` atomically once the block ends well; its mode is the umask's.

    Raises:
        OutputUnwritable: the folder cannot be made or written.
    """
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OutputUnwritable(f"{path} cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def print_fields(result: dict[str, Any]) -> None:
    """Print a result, one field a line; what is nested is for the JSON file alone."""
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
