"""Checks before Ray starts, which take seconds and report a problem in one line."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from deploy.command.errors import CommandError
from deploy.command.terminal import say
from retrieval.storage.durable import open_to_others

if TYPE_CHECKING:
    from cluster.config import FreshetConfig

_Config = TypeVar("_Config", bound="FreshetConfig")

# Files that a run writes to storage_path; others belong to the user.
_WRITTEN = ("checkpoints", "index", ".publish", "progress.json", "stopped.json")


class NotACheckpoint(CommandError):
    """There is no checkpoint at the given path."""


class StorageUnusable(CommandError):
    """`storage_path` cannot hold checkpoints and index versions."""


def absolute_storage(config: _Config) -> _Config:
    """Make `storage_path` absolute: Ray's workers run in other working directories."""
    if "://" not in config.storage_path:
        config.storage_path = str(Path(config.storage_path).expanduser().absolute())
    return config


def check_stream(config: FreshetConfig) -> None:
    """Create the topic that is repartitioned into, and check what is read (`require_inputs`)."""
    from streaming.catalogue.inputs import require_inputs

    if config.stream.partition_by == "repartition":
        from streaming.kafka.outage import patiently
        from streaming.repartitioning.repartitioner import create_own_topic

        patiently(config.stream, lambda: create_own_topic(config.stream))
    require_inputs(config.stream)


def check_storage(config: FreshetConfig) -> None:
    """Check that `storage_path`, and the other locations unless they are addresses, are or can be writable folders.

    Raises:
        StorageUnusable: one is not; names the setting.
    """
    if "://" in config.storage_path:
        raise StorageUnusable(
            f"storage_path={config.storage_path} is an address, but must be a folder; only checkpoints and index "
            "versions may lie in an object store (settings: train.checkpoint_path, train.index_path)"
        )
    places = {
        "storage_path": config.storage_path,
        "train.checkpoint_path": config.train.checkpoint_path,
        "train.index_path": config.train.index_path,
    }
    for setting, place in places.items():
        if place and "://" not in place:
            folder = Path(place).expanduser()
            _check_folder(folder, setting)
            _say_what_others_can_read(folder, setting, _WRITTEN if setting == "storage_path" else ())


def _check_folder(path: Path, setting: str) -> None:
    existing = next(p for p in (path, *path.parents) if p.exists())
    if not existing.is_dir():
        raise StorageUnusable(f"{existing} is a file, not a folder (setting: {setting}={path})")
    try:
        # Permissions are not enough: /proc and read-only mounts look writable.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StorageUnusable(f"{path} cannot be written: {reason} (setting: {setting})") from error


def _say_what_others_can_read(folder: Path, setting: str, names: Collection[str]) -> None:
    """Warn about files that other users can read. Modes are not changed, because they may be set on purpose."""
    found = open_to_others(folder, names)
    if found:
        say(
            f"{folder} ({setting}) holds {len(found)} files that other users of this machine can read, for example "
            f"{found[0].relative_to(folder)}: `chmod -R go-rwx {folder}` keeps them out; new files are private",
            to_stderr=True,
        )


def check_checkpoint(location: str | Path) -> None:
    """Check that a folder or URI holds a checkpoint (its checksums are verified when it is read).

    Raises:
        NotACheckpoint: names the location and what is missing.
    """
    from retrieval.storage.base import MANIFEST
    from retrieval.storage.location import split_location
    from retrieval.storage.opening import open_storage

    root, name = split_location(location)
    storage = open_storage(root)
    folder = storage.path(name)
    if folder is not None and not folder.is_dir():
        raise NotACheckpoint(
            f"{location} is not a checkpoint: there is no such folder (setting: --checkpoint)"
        )
    try:
        storage.read(name, MANIFEST)
    except FileNotFoundError:
        raise NotACheckpoint(
            f"{location} is not a checkpoint: it has no {MANIFEST} (setting: --checkpoint); "
            f"`freshet status` lists the checkpoints of a storage_path"
        ) from None
