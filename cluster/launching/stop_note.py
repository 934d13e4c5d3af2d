"""A worker's note in the run's storage why a restart cannot help."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from retrieval.storage.durable import make_private, replace_durably

STOP_FILE = "stopped.json"
_log = logging.getLogger(__name__)


def note_stop(storage: Path, run_id: str, error: Exception) -> None:
    """Write down why this run ends; a storage that takes no note costs some useless restarts."""
    try:
        make_private(storage)
        replace_durably(storage / STOP_FILE, json.dumps({"run_id": run_id, "reason": str(error)}).encode())
    except OSError as full:  # the error itself says why; without the note, Ray tries some useless restarts
        _log.warning("%s was not written: %s", storage / STOP_FILE, full)


def stop_reason(storage: Path, run_id: str) -> str | None:
    """The reason that a worker of this run gave why a restart cannot help, if one did."""
    try:
        noted = json.loads((storage / STOP_FILE).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return str(noted["reason"]) if noted.get("run_id") == run_id else None
