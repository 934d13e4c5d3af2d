"""Reads and writes the files of checkpoints and versions: Arrow IPC for tables, safetensors for tensors, no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import torch
from safetensors.torch import load, save

from retrieval.storage.durable import FileEntry, write_durably


class StoredContent(Protocol):
    """A file in any storage; `StoredFile` is one."""

    @property
    def stem(self) -> str:
        """Its name without the last suffix."""

    def read(self) -> pa.Buffer:
        """The content."""


def tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Tensors as safetensors."""
    payload: bytes = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    return payload


def write_table(path: Path, table: pa.Table) -> FileEntry:
    """Write an Arrow IPC file into a folder (an index version's) and fsync it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return write_durably(path, sink.getvalue())


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> FileEntry:
    """Write a safetensors file into a folder (an index version's) and fsync it."""
    return write_durably(path, tensor_bytes(tensors))


def read_table(file: Path | StoredContent) -> pa.Table:
    """Read an Arrow IPC file."""
    content = pa.py_buffer(file.read_bytes()) if isinstance(file, Path) else file.read()
    return pa.ipc.open_file(content).read_all()


def map_table(path: Path) -> pa.Table:
    """An Arrow IPC file whose columns stay on the disk until they are read, and can be dropped from memory then."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source.read_buffer()).read_all()


def read_tensors(file: Path | StoredContent) -> dict[str, torch.Tensor]:
    """Read a safetensors file onto the CPU."""
    content = file.read_bytes() if isinstance(file, Path) else file.read().to_pybytes()
    return load(content)
