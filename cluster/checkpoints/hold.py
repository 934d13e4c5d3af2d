"""Holds: retention does not remove a checkpoint that is being read, nor those that it builds on.

A hold is a note beside the checkpoints that is touched while the reader is alive. Retention watches for changes of the
note by its own clock, and ignores a hold that has not changed for `HOLD_EXPIRY_S`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cluster.checkpoints.heartbeat import Heartbeat
from retrieval.storage.base import Storage
from retrieval.storage.notes import FOLDER

HOLD_EXPIRY_S = 60.0
_SUFFIX = ".hold.json"
_log = logging.getLogger(__name__)


@contextmanager
def holding(storage: Storage, name: str, purpose: str) -> Iterator[None]:
    """Hold a checkpoint while the block runs. If this process cannot write to the storage, it reads without a hold."""
    note = f"{FOLDER}/{uuid.uuid4().hex}{_SUFFIX}"
    described = {"checkpoint": name, "by": purpose, "host": socket.gethostname(), "pid": os.getpid()}
    try:
        storage.notes.put(note, json.dumps(described).encode())
    except OSError as error:
        _log.info("%s/%s is being read without a hold: %s", storage.where, name, error)
        yield
        return
    with Heartbeat(storage.notes, note):
        yield


class Holds:
    """The checkpoints of a storage that holds protect from retention."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._seen: dict[str, tuple[float | None, float]] = {}
        """The last change of each note by the storage's clock, and when this process noticed it, by its own."""

    def names(self) -> set[str]:
        """The checkpoints that are held now; holds whose readers have died are removed."""
        notes, now = self._storage.notes, time.monotonic()
        held, seen = set(), {}
        for note in notes.names():
            if not note.endswith(_SUFFIX):
                continue
            changed = notes.changed(note)
            before = self._seen.get(note)
            noticed = before[1] if before is not None and before[0] == changed else now
            if now - noticed > HOLD_EXPIRY_S:
                notes.remove(note)
                continue
            seen[note] = changed, noticed
            with suppress(ValueError, KeyError, TypeError):  # removed meanwhile, or not ours
                held.add(str(json.loads(notes.read(note))["checkpoint"]))
        self._seen = seen
        return held
