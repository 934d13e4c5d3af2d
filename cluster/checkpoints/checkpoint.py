"""Checkpoints: sets of files that are complete if their manifest exists and verifies.

A commit has these steps (`writing.py` runs it; the names are those of its fault hook):
    1. `begin`: rank 0 creates its folder;
    2. `snapshot`: every rank copies, between two steps, what has changed since its last snapshot;
    3. `write`: a thread of every rank writes and fsyncs these copies while training continues;
    4. `written`: between two later steps, every rank sends size and SHA-256 of its files to rank 0;
    5. `manifest`: rank 0 writes `manifest.json` and fsyncs it and the folder;
    6. `rename`: rank 0 renames the folder to `step-…` (in an object store it puts the manifest instead). This is the
       commit; at `renamed`, the parent is fsynced;
    7. `offsets`: positions go to Kafka for lag tools;
    8. `prune`: deletes old checkpoints, except those that a retained one depends on, and abandoned branches.
A crash before 6 leaves files that are never listed and that the next `begin` removes.

A line is a sequence of checkpoints in which each continued from the one before, named in its manifest as `follows`.
When a run falls back to an older checkpoint because newer ones are damaged, the newer ones are abandoned, and deleted
after the next commit. Otherwise they would count as the newest if their files were repaired, and displace good ones.

A full checkpoint holds everything. A delta holds the rows, users, and records of the catalogue that changed since its
parent, and all small parts.
Its manifest names its chain, beginning with the full one, with the checksum of each manifest, so that no other
checkpoint can take the place of one in the chain. Files are safetensors, Arrow and JSON; nothing is ever unpickled.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cluster.checkpoints.claim import Claim, join
from cluster.checkpoints.hold import Holds
from cluster.checkpoints.manifest import (
    FORMAT,
    START_ANEW,
    CheckpointError,
    UnknownFormatError,
    chain_of,
    read_manifest,
)
from retrieval.storage.base import CHECKPOINTS, DamagedFile, Hook, LocalCopy, Storage, nothing
from retrieval.storage.durable import FileEntry, manifest_checksum
from retrieval.storage.files import HashingSink, StoredFile, file_problem
from retrieval.storage.location import split_location
from retrieval.storage.opening import open_storage

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: its location, manifest, and the checkpoints that it builds on.

    Attributes:
        storage: where it is stored.
        name: `step-…`, unique there.
        manifest: in the current format, whatever format it was written in.
        ancestors: the checkpoints that it builds on, the full one first; empty if it is full itself.
    """

    storage: Storage
    name: str
    manifest: Mapping[str, Any]
    ancestors: tuple[Checkpoint, ...] = ()

    @property
    def step(self) -> int:
        """Optimizer steps taken when it was written."""
        return int(self.manifest["step"])

    @property
    def location(self) -> str:
        """Its folder or URI."""
        return self.storage.location(self.name)

    @property
    def path(self) -> Path:
        """Its folder.

        Raises:
            CheckpointError: it is in an object store.
        """
        path = self.storage.path(self.name)
        if path is None:
            raise CheckpointError(f"{self.location} is not a folder on this machine; copy it here first")
        return path

    @property
    def size(self) -> int:
        """Bytes of its own files."""
        return sum(int(entry["size"]) for entry in self.manifest["files"])

    @property
    def links(self) -> tuple[Checkpoint, ...]:
        """The whole chain, the full one first, this one last."""
        return (*self.ancestors, self)

    def file(self, name: str) -> StoredFile:
        """One of its own files.

        Raises:
            CheckpointError: its manifest does not list the file, so it cannot be verified.
        """
        if not self.has(name):
            raise CheckpointError(f"{self.location} is damaged: its manifest does not list {name}")
        return StoredFile(self.storage, self.name, name)

    def here(self, name: str) -> LocalCopy:
        """One of its own files as a path on this machine; from an object store it is copied once, and checked.

        Raises:
            CheckpointError: its manifest does not list it, or it is missing or damaged.
        """
        entry = next((entry for entry in self.manifest["files"] if entry["name"] == name), None)
        if entry is None:
            raise CheckpointError(f"{self.location} is damaged: its manifest does not list {name}")
        try:
            return self.storage.copy_here(self.name, FileEntry(name, entry["size"], entry["sha256"]))
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.location} is damaged: {name} is missing") from error
        except DamagedFile as error:
            raise CheckpointError(f"{self.location} is damaged: {error}") from error

    def has(self, name: str) -> bool:
        """Whether it has this file of its own."""
        return any(entry["name"] == name for entry in self.manifest["files"])

    def files(self, prefix: str) -> list[StoredFile]:
        """The chain's files with this prefix: those of the full one first, then of each delta; sorted in each."""
        return [
            link.file(name)
            for link in self.links
            for name in sorted(entry["name"] for entry in link.manifest["files"])
            if name.startswith(prefix)
        ]


class CheckpointStore:
    """All checkpoints of one run, in a folder or under a URI (by default `storage_path/checkpoints`).

    Args:
        root: the location.
        keep: see `prune`.
        claimed: further locations that a run claims when it writes here (`FreshetConfig.claimed_locations`).
        advice: what to do about checkpoints that cannot be read.
        at: called at each step of a commit.
    """

    def __init__(
        self,
        root: str | Path,
        keep: int = 3,
        *,
        claimed: Iterable[str | Path] = (),
        advice: str = START_ANEW,
        at: Hook = nothing,
    ) -> None:
        self.storage = open_storage(root)
        self._claimed = [self.storage, *(open_storage(place) for place in claimed if place != root)]
        self._keep, self._advice, self._at = keep, advice, at
        self._claims: list[Claim] = []
        self._holds = Holds(self.storage)
        self._last: Checkpoint | None = None  # found or committed here; the next one follows it

    def join(self, run_id: str) -> None:
        """Fence off earlier groups of this run (rank 0, before it looks for a checkpoint to resume from).

        Raises:
            cluster.checkpoints.claim.StorageTaken: another run has claimed the location.
        """
        self._claims = [join(storage, run_id) for storage in self._claimed]

    def check_claim(self) -> None:
        """Check that the location has not been taken over.

        Raises:
            cluster.checkpoints.claim.StorageTaken: it has.
        """
        for claim in self._claims:
            claim.check()

    @property
    def where(self) -> str:
        """The location, for people."""
        return self.storage.where

    def begin(self, step: int) -> Writing:
        """Begin a checkpoint of this step (rank 0); a step that is written again gets a new name."""
        taken = {
            repeat for number, repeat in map(CHECKPOINTS.order_of, self.storage.names()) if number == step
        }
        name = CHECKPOINTS.name_of(step, max(taken) + 1 if taken else 0)
        self._at("begin")
        self.check_claim()
        self.storage.begin(name)
        return Writing(self.storage, name)

    def commit(
        self,
        writing: Writing,
        files: Iterable[FileEntry],
        state: Mapping[str, Any],
        parent: Checkpoint | None = None,
    ) -> Checkpoint:
        """Write the manifest and commit (rank 0 only, after every rank has written its files)."""
        links = parent.links if parent is not None else ()
        before = parent or self._last
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "kind": "full" if parent is None else "delta",
            "follows": before.name if before is not None else None,
            "step": CHECKPOINTS.order_of(writing.name)[0],
            "written_ms": int(time.time() * 1000),
            "chain": [{"name": link.name, "checksum": link.manifest["checksum"]} for link in links],
            **state,
            "files": [vars(entry) for entry in sorted(files, key=lambda entry: entry.name)],
        }
        # As it will be read back: a tuple becomes a list.
        manifest = json.loads(json.dumps(manifest))
        manifest["checksum"] = manifest_checksum(manifest)
        self.check_claim()
        self.storage.commit(writing.name, json.dumps(manifest, indent=1).encode(), self._at)
        self._last = Checkpoint(self.storage, writing.name, manifest, links)
        return self._last

    def prune(self, newest: Checkpoint) -> list[str]:
        """Remove checkpoints that are no longer needed once `newest` is committed, children before parents.

        Kept are the newest `keep` of its line, everything they build on, and (unless `keep` is 1) the newest one that
        shares no file with `newest`, so that damage to one file cannot make all unusable. Unreadable checkpoints do not
        count. Checkpoints that are being read (`hold.py`) are kept too.
        """
        self._at("prune")
        names = self.storage.names()
        manifests = self._readable(names) | {newest.name: newest.manifest}
        line = _line_of(newest, manifests)
        chains = {name: [*chain_of(manifests[name]), name] for name in line}
        needed = {link for name in line[: self._keep] for link in chains[name]}
        apart = next((name for name in line if chains[name][0] != chains[newest.name][0]), None)
        if self._keep > 1 and apart is not None:
            needed |= set(chains[apart])
        held = self._holds.names() & set(manifests)
        needed |= {link for name in held for link in [*chain_of(manifests[name]), name]}
        going = [name for name in reversed(names) if name not in needed]
        given_up = set(going).difference(line)
        for name in going:
            if name in given_up:
                _log.warning("%s/%s is not an ancestor of %s; removing it", self.where, name, newest.name)
            self.storage.remove(name)
        return going

    def _readable(self, names: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        for name in names:
            with suppress(CheckpointError):  # no run can resume from it or build on it
                found[name] = read_manifest(self.storage, name)
        return found

    def names(self) -> list[str]:
        """Committed checkpoints, oldest first."""
        return self.storage.names()

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose whole chain verifies; logs a warning for newer ones. None if there are none.

        The next checkpoint committed here follows it.

        Raises:
            UnknownFormatError: a later version of Freshet has written here; falling back would undo its work.
            CheckpointError: there are checkpoints, but none of them verifies.
        """
        problems = []
        known: dict[str, Checkpoint | CheckpointError] = {}
        for name in reversed(self.storage.names()):
            try:
                self._last = _open_chain(self.storage, name, known)
                return self._last
            except UnknownFormatError as problem:
                raise UnknownFormatError(f"{problem}, or {self._advice}") from None
            except CheckpointError as problem:
                _log.error("%s; trying the previous one", problem)
                problems.append(str(problem))
        if problems:
            raise CheckpointError(
                f"none of the {len(problems)} checkpoints in {self.where} verifies: {problems[0]}; {self._advice}"
            )
        return None

    def verified(self, name: str) -> Checkpoint:
        """A checkpoint here by its name, read and verified as by `open_checkpoint`.

        Raises:
            CheckpointError: there is none, its format is unknown, or a file does not match.
        """
        return _open_chain(self.storage, name, {})

    def open(self, name: str) -> Checkpoint:
        """A checkpoint whose chain was already verified, for example by another rank: reads only the manifests."""
        return _trusted(self.storage, name)


@dataclass(frozen=True)
class Writing:
    """A checkpoint that is being written; all ranks write to one of the same name."""

    storage: Storage
    name: str

    @contextmanager
    def sink(self, file: str) -> Iterator[HashingSink]:
        """A file of it, durable when the context is left."""
        with self.storage.writing(self.name, file) as raw:
            yield HashingSink(raw)

    def write(self, file: str, payload: bytes) -> FileEntry:
        """A file of bytes."""
        with self.sink(file) as sink:
            sink.write(payload)
        return sink.entry(file)

    def write_table(self, file: str, batches: pa.Table | Iterable[pa.Table]) -> FileEntry:
        """An Arrow IPC file of one table, or of an iterable of tables with one schema."""
        tables = iter([batches] if isinstance(batches, pa.Table) else batches)
        first = next(tables)
        with (
            self.sink(file) as sink,
            pa.PythonFile(sink, "w") as target,
            pa.ipc.new_file(target, first.schema) as writer,
        ):
            writer.write_table(first)
            for table in tables:
                writer.write_table(table)
        return sink.entry(file)

    def write_tensors(self, file: str, tensors: Mapping[str, torch.Tensor]) -> FileEntry:
        """A safetensors file."""
        from cluster.checkpoints.arrays import tensor_bytes  # imports torch; reading manifests needs none

        return self.write(file, tensor_bytes(tensors))


def _line_of(newest: Checkpoint, manifests: dict[str, Mapping[str, Any]]) -> list[str]:
    """The checkpoints that `newest` and its predecessors continued from, newest first, then all that are older.

    Checkpoints between two of these belong to an abandoned branch.
    """
    line = [newest.name]
    while (before := _followed_by(manifests[line[-1]])) in manifests and before not in line:
        line.append(before)
    oldest = min(map(CHECKPOINTS.order_of, line))
    return line + [name for name in reversed(manifests) if CHECKPOINTS.order_of(name) < oldest]


def _followed_by(manifest: Mapping[str, Any]) -> str:
    """The name of the checkpoint that this one's run continued from; empty if there was none or it is not recorded."""
    return manifest.get("follows") or next(reversed(chain_of(manifest)), "")


def open_checkpoint(location: str | Path) -> Checkpoint:
    """Read and verify one checkpoint and what it builds on: formats, and each file's size and checksum.

    Raises:
        CheckpointError: it is not a checkpoint, its format is unknown, or a file does not match.
    """
    root, name = split_location(location)
    return _open_chain(open_storage(root), name, {})


def trusted_checkpoint(location: str | Path) -> Checkpoint:
    """A checkpoint that was already verified, for example by another rank: reads only the manifests.

    Raises:
        CheckpointError: it is not a checkpoint, or its format is unknown.
    """
    root, name = split_location(location)
    return _trusted(open_storage(root), name)


def _trusted(storage: Storage, name: str) -> Checkpoint:
    manifest = read_manifest(storage, name)
    links = [Checkpoint(storage, n, read_manifest(storage, n)) for n in chain_of(manifest)]
    return Checkpoint(storage, name, manifest, tuple(links))


def _open_chain(storage: Storage, name: str, known: dict[str, Checkpoint | CheckpointError]) -> Checkpoint:
    """A checkpoint and its chain, all verified; `known` caches checkpoints that several chains share."""
    own = _verified(storage, name, known)
    links = []
    for link in own.manifest["chain"]:
        try:
            found = _verified(storage, link["name"], known)
        except UnknownFormatError:
            raise
        except CheckpointError as problem:
            raise CheckpointError(f"{own.location} builds on one that cannot be used: {problem}") from problem
        if found.manifest["checksum"] != link["checksum"]:
            raise CheckpointError(
                f"{own.location} builds on another {link['name']} than the one that is there"
            )
        links.append(found)
    return Checkpoint(storage, name, own.manifest, tuple(links))


def _verified(storage: Storage, name: str, known: dict[str, Checkpoint | CheckpointError]) -> Checkpoint:
    if name not in known:
        try:
            manifest = read_manifest(storage, name)
            for entry in manifest["files"]:
                problem = file_problem(storage, name, entry)
                if problem:
                    raise CheckpointError(f"{storage.where}/{name} is damaged: {entry['name']} {problem}")
            known[name] = Checkpoint(storage, name, manifest)
        except CheckpointError as error:
            known[name] = error
    found = known[name]
    if isinstance(found, CheckpointError):
        raise found
    return found
