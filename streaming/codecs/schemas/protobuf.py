"""Protobuf messages as Python objects with their own field names."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from streaming.codecs.schemas.packages import package
from streaming.events.quoting import quoted

_MOST_VARINT_BYTES = 10
_TIMESTAMP = "google.protobuf.Timestamp"
_GOOGLE = "google/protobuf/"
_PROTOC_TIMEOUT_S = 60.0
_MAIN = "schema.proto"
_NAMES_FILE = re.compile(r"\S+\.proto:")


def compiled(text: str, references: Mapping[str, str] | None = None, folder: Path | None = None) -> Any:
    """A .proto file and all that it imports, as a FileDescriptorSet whose last file is the main one.

    protoc runs in a process of its own, because the text may be foreign.

    Args:
        text: of the main file.
        references: texts of imported files by the name in the import statement.
        folder: where further imports are looked for.
    Raises:
        ValueError: protoc refuses it; the message is protoc's.
        StreamSettingError: grpcio-tools or protobuf is not installed.
    """
    package("grpc_tools")
    with tempfile.TemporaryDirectory(prefix="freshet-proto-") as own:
        for name, imported in (references or {}).items():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"it imports a file outside its folder: {quoted(name)}")
            target = Path(own, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(imported)
        Path(own, _MAIN).write_text(text)
        out = Path(own, "descriptors.bin")
        paths = [f"-I{own}", *([f"-I{folder}"] if folder else [])]
        made = subprocess.run(
            [sys.executable, "-m", "grpc_tools.protoc", *paths, "--include_imports", f"-o{out}", _MAIN],
            capture_output=True,
            text=True,
            timeout=_PROTOC_TIMEOUT_S,
            check=False,
        )
        if made.returncode:
            lines = made.stderr.strip().splitlines() or ["protoc failed"]
            raise ValueError(next((line for line in lines if _NAMES_FILE.match(line)), lines[-1]))
        return descriptor_set(out.read_bytes())


def descriptor_set(data: bytes) -> Any:
    """A FileDescriptorSet, as `protoc --include_imports -o` writes it.

    Raises:
        ValueError: it is none, or it is empty.
        StreamSettingError: protobuf is not installed.
    """
    try:
        files = package("google.protobuf.descriptor_pb2").FileDescriptorSet.FromString(data)
    except package("google.protobuf.message").DecodeError as error:
        raise ValueError("it is not a FileDescriptorSet") from error
    if not files.file:
        raise ValueError("it is a FileDescriptorSet without files")
    return files


def framed_decoder(files: Any) -> Callable[[bytes], Any]:
    """Decodes messages that begin with the path of their type in the last file (Confluent's wire format)."""
    main = _loaded(files).FindFileByName(files.file[-1].name)
    top = [message.name for message in files.file[-1].message_type]
    class_of = package("google.protobuf.message_factory").GetMessageClass

    def decode(data: bytes) -> Any:
        path, at = _message_path(data)
        kind = main.message_types_by_name[top[path[0]]]
        for place in path[1:]:
            kind = kind.nested_types[place]
        return _object(class_of(kind).FromString(data[at:]))

    return decode


def plain_decoder(files: Any, name: str) -> Callable[[bytes], Any]:
    """Decodes messages of one type.

    Args:
        files: a FileDescriptorSet.
        name: of the message type, with its package; empty: the first one of the last file.
    Raises:
        ValueError: there is no such type, or an imported file is missing.
    """
    pool, last = _loaded(files), files.file[-1]
    names = [f"{f.package}.{m.name}".lstrip(".") for f in files.file for m in f.message_type]
    if not name and last.message_type:
        name = f"{last.package}.{last.message_type[0].name}".lstrip(".")
    try:
        kind = pool.FindMessageTypeByName(name)
    except KeyError:
        raise ValueError(
            f"it has no message type {name!r}, only {', '.join(names)}: append #NAME to the file"
        ) from None
    made = package("google.protobuf.message_factory").GetMessageClass(kind)
    return lambda data: _object(made.FromString(data))


def _loaded(files: Any) -> Any:
    """A pool with all files; Google's own come from the package, so that their types have their methods."""
    pools = package("google.protobuf.descriptor_pool")
    package("google.protobuf.timestamp_pb2")
    pool, have = pools.DescriptorPool(), {file.name for file in files.file}
    for name in {name for file in files.file for name in file.dependency} - have:
        if not name.startswith(_GOOGLE):
            raise ValueError(f"{name} is missing: write it with protoc --include_imports")
        pool.AddSerializedFile(pools.Default().FindFileByName(name).serialized_pb)
    for file in files.file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


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
