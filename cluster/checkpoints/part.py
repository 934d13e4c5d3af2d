"""A part of a checkpoint: one piece of a run's state, with its name, how it is saved and how it is restored.

Each part is a file in `parts/`; `cluster/training/state/parts.py` lists those of a run. Nothing else names them.

What is small is copied whole for every checkpoint (`copies`). What grows with ids or users is whole in a full
checkpoint (`base`) and in a delta only what changed (`changes`).
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
from retrieval.versions.store import Version

Slice: TypeAlias = pa.Table | Callable[[], pa.Table]
"""A copy, or what makes one: called by the thread at any time before `Part.changes`, while training goes on."""


@dataclass(frozen=True)
class Copies:
    """Copies of what is small, taken between two steps.

    Attributes:
        tables: by file name.
        tensors: by file name; on the CPU.
        told: what this rank tells rank 0 for the manifest.
    """

    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    tensors: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class VersionFile:
    """A file of an index version by its name: the copy of it on this machine may be called otherwise."""

    version: Version
    name: str

    @property
    def stem(self) -> str:
        """Its name without the last suffix."""
        return self.name.rpartition(".")[0]

    def read(self) -> pa.Buffer:
        """The content, as the version's manifest describes it."""
        return pa.py_buffer(self.version.file(self.name).read_bytes())

    def __str__(self) -> str:
        return f"{self.version.storage.where}/{self.version.name}/{self.name}"


@dataclass
class Saved:
    """What parts are restored from.

    Attributes:
        source: a verified checkpoint, or, for parts of the query side, an index version.
        attributes: how the user attributes have changed since it was written.
        advice: what can be done about a state that does not fit, for errors.
        notices: what people should know of the restored state, a line each; parts add to it.
    """

    source: Checkpoint | Version
    attributes: AttributeChange = UNCHANGED
    advice: str = START_ANEW
    notices: list[str] = field(default_factory=list)

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint, for parts that no index version has."""
        assert isinstance(self.source, Checkpoint), "an index version has only the query side"
        return self.source

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What the manifest says."""
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
        """The files whose names start so; of a checkpoint, those of its whole chain, the full one's first."""
        if isinstance(self.source, Checkpoint):
            return self.source.files(prefix)
        return self.own_files(prefix)

    def own_files(self, prefix: str) -> list[StoredContent]:
        """The same without the chain: of what is whole in every checkpoint, the newest is enough."""
        names = sorted(entry["name"] for entry in self.manifest["files"])
        return [self.file(name) for name in names if name.startswith(prefix)]


class Part(ABC):
    """One piece of the state of one rank.

    Attributes:
        names: how the names of its files begin; no other part's begin so. None if the manifest has all of it.
        learnt: it is true of any stream, so a run that `train.init_from` starts takes it over.
    """

    names: ClassVar[tuple[str, ...]] = ()
    learnt: ClassVar[bool] = False

    def forget(self) -> None:  # noqa: B027 (most parts are small, and have nothing to forget)
        """What changed so far is in a checkpoint already."""

    def base(self) -> Iterator[tuple[str, Slice]]:
        """All of it in slices, (file, slice), those of a file together; what changes later is in `changes` whole."""
        return iter(())

    def changes(self) -> dict[str, pa.Table]:
        """Copies of what changed since `forget` or the last call, by file; tables without rows are not written."""
        return {}

    def copies(self) -> Copies:
        """Copies of what is small, whole in every checkpoint."""
        return Copies()

    def merged(self, told: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """What the manifest says, from what every rank told, in rank order; for what is not here, rank 0 speaks."""
        return {}

    @abstractmethod
    def restore(self, saved: Saved) -> None:
        """Read what this rank owns now, whoever wrote it."""


class ServedPart(Part):
    """A part that an index version has too: it makes query vectors."""

    @abstractmethod
    def publish(self, folder: Path) -> None:
        """Write what this rank adds to a version that is being built; `restore` reads it from there."""
