"""A checkpoint's manifest: its content, with its own checksum, in any format ever written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from cluster.setting_names import with_present_names
from retrieval.storage.base import CHECKPOINTS, MANIFEST, NotAFile, Storage
from retrieval.storage.durable import is_plain_name, manifest_checksum

FORMAT = 2
"""All formats have the same checksum, so that a newer format can be distinguished from a damaged file."""
START_ANEW = "point storage_path elsewhere to start fresh"
"""Advice that always applies to the run's own checkpoints."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read; the message names the path, what is wrong and the setting to change."""


class UnknownFormatError(CheckpointError):
    """An intact checkpoint of a later version of Freshet."""


def _from_format_1(manifest: dict[str, Any]) -> dict[str, Any]:
    """Format 1 had no deltas; its files have the names and columns of a full checkpoint in the current format.

    The checksum remains that of the file, because deltas identify what they build on by it.
    """
    return {**manifest, "format": FORMAT, "kind": "full", "chain": [], "written_ms": None}


_UPGRADES: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_format_1}
"""Conversions from each older format to the current one."""


def read_manifest(storage: Storage, name: str) -> dict[str, Any]:
    """A manifest in the current format, checked against its own checksum; other files are not checked.

    Raises:
        UnknownFormatError: its format is unknown to this version.
        CheckpointError: it is missing or damaged.
    """
    place = f"{storage.where}/{name}"
    try:
        content = storage.read(name, MANIFEST).to_pybytes()
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{place} is not a checkpoint: it has no {MANIFEST} (setting: checkpoint or storage_path)"
        ) from None
    except NotAFile as error:
        raise CheckpointError(f"{place} is damaged: {error}") from error
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise CheckpointError(f"{place}/{MANIFEST} is not valid JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("checksum") != manifest_checksum(manifest):
        raise CheckpointError(f"{place} is damaged: {MANIFEST} does not match its own checksum")
    readable = [*_UPGRADES, FORMAT]
    if manifest.get("format") not in readable:
        raise UnknownFormatError(
            f"{place} has checkpoint format {manifest.get('format')!r}, this version reads "
            f"{', '.join(map(str, readable))}: use the version of freshet that wrote it"
        )
    upgraded: dict[str, Any] = manifest
    while upgraded["format"] != FORMAT:
        upgraded = _UPGRADES[upgraded["format"]](upgraded)
    _refuse_paths(place, upgraded)
    return _with_present_names(upgraded)


def _with_present_names(manifest: dict[str, Any]) -> dict[str, Any]:
    """The settings of the run that wrote it, under their current names."""
    if not isinstance(manifest.get("config"), dict):
        return manifest
    return {**manifest, "config": with_present_names(manifest["config"])}


def _refuse_paths(place: str, manifest: Mapping[str, Any]) -> None:
    """Check that its files are in its folder, and the checkpoints that it builds on beside it."""
    outside = [entry["name"] for entry in manifest["files"] if not is_plain_name(entry["name"])]
    outside += [name for name in chain_of(manifest) if not CHECKPOINTS.is_name(name)]
    if outside:
        raise CheckpointError(
            f"{place} is damaged: {MANIFEST} names {outside[0]!r}, which does not lie in its folder"
        )


def chain_of(manifest: Mapping[str, Any]) -> list[str]:
    """The names of the checkpoints that it builds on, the full one first."""
    return [link["name"] for link in manifest["chain"]]
