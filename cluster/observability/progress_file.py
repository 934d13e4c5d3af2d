"""The trainer's progress file: one small JSON file, replaced atomically."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.storage_trouble import StorageTrouble
from retrieval.storage.durable import PRIVATE_FILE, make_private, replacing

PROGRESS_FILE = "progress.json"
_log = logging.getLogger(__name__)


def write_progress(storage_path: Path, progress: Mapping[str, Any]) -> None:
    """Replace `storage_path/progress.json`; a reader sees the old file or the new one, never a part."""
    make_private(storage_path)
    with replacing(storage_path / PROGRESS_FILE) as temporary:
        temporary.touch(PRIVATE_FILE)
        temporary.write_text(json.dumps({"time_s": time.time(), **progress}))


class ProgressFile:
    """The trainer's own `progress.json`, for people; if it cannot be written, this is reported once, and training
    continues."""

    def __init__(self, storage_path: Path) -> None:
        self._folder = storage_path
        self._trouble = StorageTrouble(f"{storage_path / PROGRESS_FILE} cannot be written")

    def write(self, progress: Mapping[str, Any]) -> None:
        """Replace it, if the disk allows it; a missing folder is created again."""
        try:
            write_progress(self._folder, progress)
        except OSError as error:
            self._trouble.failed(error)
        else:
            self._trouble.works()

    def read(self) -> dict[str, Any] | None:
        """The last record, written by any process; None if none can be read."""
        try:
            return read_progress(self._folder)
        except (OSError, ValueError) as error:
            _log.warning("the progress so far is not known: %s", error)
            return None


def read_progress(storage_path: Path) -> dict[str, Any] | None:
    """The last progress that was written; None if no trainer has written any here."""
    try:
        content = json.loads((storage_path / PROGRESS_FILE).read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{storage_path / PROGRESS_FILE} is not valid JSON ({error}); remove it") from error
    return content if isinstance(content, dict) else None
