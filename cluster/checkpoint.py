"""Checkpoints: directories that are whole if their manifest is there and verifies.

A commit, in this order:
    1. rank 0 makes `.writing-step-…`; every rank writes its files into it and fsyncs them;
    2. every rank tells rank 0 the size and SHA-256 of what it wrote;
    3. rank 0 writes `manifest.json`, fsyncs it and the directory;
    4. rank 0 renames the directory to `step-…` and fsyncs the parent: this instant is the commit;
    5. positions go to Kafka for lag tools, then older checkpoints are removed.
A crash before 4 leaves a directory whose name starts with a dot: garbage, removed by the next commit.
Files are safetensors, Arrow and JSON; nothing here is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file

from retrieval.durable_files import FileEntry, fsync_directory, seal, sha256, write_durably

FORMAT = 1
START_ANEW = "point storage_path elsewhere to start anew"
"""What can always be done about a checkpoint of the run's own."""

_NAME = re.compile(r"step-(\d{8,})")
_log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read; the message names the path, what is wrong and the setting to change."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: its directory and what its manifest says."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps taken when it was written."""
        return int(self.manifest["step"])

    def files(self, prefix: str) -> list[Path]:
        """Paths of the files whose names start so, sorted."""
        return sorted(self.path / f["name"] for f in self.manifest["files"] if f["name"].startswith(prefix))


class CheckpointStore:
    """All checkpoints of one run, under `storage_path/checkpoints`."""

    def __init__(self, root: Path, keep: int = 3, *, advice: str = START_ANEW) -> None:
        self.root = root
        self._keep, self._advice = keep, advice

    def begin(self, step: int) -> Path:
        """Make the directory that the ranks write into (rank 0 only); drops what a crash left behind."""
        self.root.mkdir(parents=True, exist_ok=True)
        for leftover in self.root.glob(".*step-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        path = self.writing_path(step)
        path.mkdir()
        return path

    def writing_path(self, step: int) -> Path:
        """Where the files of this step are written before the commit."""
        return self.root / f".writing-step-{step:08d}"

    def commit(self, step: int, files: Iterable[FileEntry], state: Mapping[str, Any]) -> Checkpoint:
        """Write the manifest, rename, prune (rank 0 only, after every rank has written its files)."""
        writing, final = self.writing_path(step), self.root / f"step-{step:08d}"
        entries = [vars(entry) for entry in sorted(files, key=lambda entry: entry.name)]
        manifest: dict[str, Any] = {"format": FORMAT, "step": step, **state, "files": entries}
        manifest["checksum"] = _checksum(manifest)
        write_durably(writing / "manifest.json", json.dumps(manifest, indent=1).encode())
        fsync_directory(writing)
        if final.exists():  # a corrupt one that the run was resumed behind, or nothing to train on came since
            final.rename(self.root / f".replaced-step-{step:08d}")
        writing.rename(final)
        fsync_directory(self.root)
        self._prune(final)
        return Checkpoint(final, manifest)

    def paths(self) -> list[Path]:
        """Committed checkpoint directories, oldest first."""
        if not self.root.is_dir():
            return []
        named = [(match, path) for path in self.root.iterdir() if (match := _NAME.fullmatch(path.name))]
        return [path for match, path in sorted(named, key=lambda pair: int(pair[0][1]))]

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; says loudly which ones do not. None if there is none at all.

        Raises:
            CheckpointError: there are checkpoints, but none of them verifies.
        """
        problems = []
        for path in reversed(self.paths()):
            try:
                return open_checkpoint(path)
            except CheckpointError as problem:
                _log.error("%s; trying the one before it", problem)
                problems.append(str(problem))
        if problems:
            raise CheckpointError(
                f"none of the {len(problems)} checkpoints in {self.root} verifies: {problems[0]}; "
                f"{self._advice}"
            )
        return None

    def open_verified(self, path: Path) -> Checkpoint:
        """A checkpoint that another rank has verified: only its manifest is read again."""
        return Checkpoint(path, json.loads((path / "manifest.json").read_bytes()))

    def _prune(self, newest: Path) -> None:
        for path in [p for p in self.paths() if p != newest][: -(self._keep - 1) or None]:
            shutil.rmtree(path)


def open_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint directory: format, and each file's size and checksum.

    Raises:
        CheckpointError: it is no checkpoint, is of an unknown format, or a file does not match.
    """
    manifest_path = path / "manifest.json"
    if not manifest_path.is_file():
        raise CheckpointError(
            f"{path} is not a checkpoint: it has no manifest.json (setting: checkpoint or storage_path)"
        )
    try:
        manifest = json.loads(manifest_path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{manifest_path} is not valid JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise CheckpointError(f"{path} has checkpoint format {found!r}; this version reads {FORMAT}")
    if manifest.pop("checksum", None) != _checksum(manifest):
        raise CheckpointError(f"{path} is damaged: manifest.json does not match its own checksum")
    for entry in manifest["files"]:
        file = path / entry["name"]
        if not file.is_file():
            raise CheckpointError(f"{path} is damaged: {entry['name']} is missing")
        if file.stat().st_size != entry["size"] or sha256(file) != entry["sha256"]:
            raise CheckpointError(f"{path} is damaged: {entry['name']} does not match its checksum")
    return Checkpoint(path, manifest)


def _checksum(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its checksum: positions and counters are as precious as the files."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def write_table(path: Path, table: pa.Table) -> FileEntry:
    """Write an Arrow IPC file and fsync it."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return seal(path)


def read_table(path: Path) -> pa.Table:
    """Read an Arrow IPC file wholly into memory."""
    return pa.ipc.open_file(pa.py_buffer(path.read_bytes())).read_all()


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> FileEntry:
    """Write a safetensors file and fsync it."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    return seal(path)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file onto the CPU."""
    return load_file(path)
