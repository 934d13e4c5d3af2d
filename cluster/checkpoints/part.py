"""A part of a checkpoint: one piece of a run's state, with its name, and how to save and restore it.

Each part is a file in `parts/`; `cluster/training/state/parts.py` lists those of a run. Nothing else names them.

Small state is copied as a whole for every checkpoint (`copies`). State that grows with ids or users is complete in a
full checkpoint (`base`), and a delta has only its changes (`changes`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import pyarrow as pa
import torch

from cluster.checkpoints.arrays import StoredContent
from cluster.checkpoints.attribute_change import UNCHANGED, AttributeChange
from cluster.checkpoints.checkpoint import Checkpoint
from cluster.checkpoints.manifest import START_ANEW
from retrieval.storage.base import LocalCopy
from retrieval.versions.store import Version

Slice: TypeAlias = pa.Table | Callable[[], pa.Table]
"""A copy, or a function that makes one; the thread may call it at any time before `Part.changes`, during training."""

Copy: TypeAlias = pa.Table | Callable[[], Iterator[pa.Table]]
"""What was copied between two steps, or makes slices of what nothing changes any more."""


@dataclass(frozen=True)
class Copies:
    """Copies of small state, taken between two steps.

    Attributes:
        tables: by file name; of what is large, a function that makes slices of one schema, for the thread that writes.
        tensors: by file name; on the CPU.
        told: this rank's data for the manifest, sent to rank 0.
    """

    tables: Mapping[str, Copy] = field(default_factory=dict)
    tensors: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class VersionFile:
    """A file of an index version by its name; its copy on this machine may have another name."""

    version: Version
    name: str

    @property
    def stem(self) -> str:
        """Its name without the last suffix."""
        return self.name.rpartition(".")[0]

    def read(self) -> pa.Buffer:
        """The content, verified against the version's manifest."""
        return pa.py_buffer(self.version.file(self.name).read_bytes())

    def __str__(self) -> str:
        return f"{self.version.storage.where}/{self.version.name}/{self.name}"


@dataclass(frozen=True)
class FileHere:
    """A file of a checkpoint or of an index version on this machine, where it stays while this object lives.

    Attributes:
        owner: what it belongs to.
        name: in the manifest; the copy of an object may have another one.
        path: where it lies.
    """

    owner: Checkpoint | Version
    name: str
    path: Path
    _copy: LocalCopy | None = None

    @property
    def stem(self) -> str:
        """Its name without the last suffix."""
        return self.name.rpartition(".")[0]

    def __str__(self) -> str:
        return f"{self.owner.storage.where}/{self.owner.name}/{self.name}"


@dataclass
class Saved:
    """The source from which parts are restored.

    Attributes:
        source: a verified checkpoint, or, for parts of the query side, an index version.
        attributes: how the user attributes have changed since it was written.
        advice: what to do about a state that does not fit, for errors.
        notices: lines that people should see about the restored state; parts add to it.
    """

    source: Checkpoint | Version
    attributes: AttributeChange = UNCHANGED
    advice: str = START_ANEW
    notices: list[str] = field(default_factory=list)

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint, for parts that are not in index versions."""
        assert isinstance(self.source, Checkpoint), "an index version has only the query side"
        return self.source

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The manifest."""
        return self.source.manifest

    def file(self, name: str) -> StoredContent:
        """One of its own files.

        Raises:
            CheckpointError: its manifest does not list it; of a version, `read` raises VersionCorrupt.
        """
        return (
            self.source.file(name) if isinstance(self.source, Checkpoint) else VersionFile(self.source, name)
        )

    def files(self, prefix: str) -> Sequence[StoredContent]:
        """The files with this prefix; for a checkpoint, those of its whole chain, the full one's first."""
        if isinstance(self.source, Checkpoint):
            return self.source.files(prefix)
        return self.own_files(prefix)

    def here(self, prefix: str) -> list[FileHere]:
        """`files` as paths on this machine, for what maps them; from an object store they are copied once.

        Raises:
            CheckpointError, VersionCorrupt: a file is missing or damaged.
        """
        if isinstance(self.source, Version):
            return [_here(self.source, name) for name in self.source.files(prefix)]
        return [
            _here(link, name)
            for link in self.source.links
            for name in sorted(entry["name"] for entry in link.manifest["files"])
            if name.startswith(prefix)
        ]

    def own_here(self, name: str) -> FileHere:
        """One of its own files, as `here`.

        Raises:
            CheckpointError, VersionCorrupt: the manifest does not list it, or it is missing or damaged.
        """
        return _here(self.source, name)

    def own_files(self, prefix: str) -> list[StoredContent]:
        """The same without the chain, for parts that are complete in every checkpoint."""
        names = sorted(entry["name"] for entry in self.manifest["files"])
        return [self.file(name) for name in names if name.startswith(prefix)]


def _here(owner: Checkpoint | Version, name: str) -> FileHere:
    if isinstance(owner, Version):
        return FileHere(owner, name, owner.file(name))  # the version keeps its copies
    copy = owner.here(name)
    return FileHere(owner, name, copy.path, copy)


class Part(ABC):
    """One piece of the state of one rank.

    Attributes:
        names: prefixes of its files' names, unique to the part; empty if everything is in the manifest.
        learnt: whether it applies to any stream, so that a run started with `train.init_from` restores it.
    """

    names: ClassVar[tuple[str, ...]] = ()
    learnt: ClassVar[bool] = False

    def forget(self) -> None:  # noqa: B027 (most parts are small, and have nothing to forget)
        """Forget the changes so far: a checkpoint has them, or the base that begins."""

    def base(self) -> Iterator[tuple[str, Slice]]:
        """All of it in slices, (file, slice), grouped by file; entries that change later are repeated in `changes`."""
        return iter(())

    def changed_bytes(self) -> int:
        """About how much `changes` would copy now; what is small counts as nothing."""
        return 0

    def changes_in_slices(self, number: int) -> Iterator[tuple[str, Slice]]:
        """What `changes` would copy, as `base` has it: what changes from here on is in `changes` whole.

        Args:
            number: from 1 on, of the call within a checkpoint; a part of the file's name. Later files hold over earlier
                ones.
        """
        return iter(())

    def changes(self) -> dict[str, pa.Table]:
        """Copies of the changes since `forget` or the last call, by file; tables without rows are not written."""
        return {}

    def copies(self) -> Copies:
        """Copies of small state, complete in every checkpoint."""
        return Copies()

    def merged(self, told: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Fields of the manifest, from all ranks' data in rank order; other fields are taken from rank 0."""
        return {}

    @abstractmethod
    def restore(self, saved: Saved) -> None:
        """Read what this rank owns now, whichever rank wrote it."""
