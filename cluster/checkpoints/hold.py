"""Checkpoints that are being read stay: a hold on one keeps retention from removing it and what it builds on.

A hold is a note beside the checkpoints, touched while the reader lives. Who removes old checkpoints watches that it
changes, by its own clock, and takes no notice of one that has not for `HOLD_EXPIRY_S`.
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
    """Keep a checkpoint while the block runs. A storage that this process may not write is read without a hold."""
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
    """What the holds of a storage keep, for whoever removes old checkpoints there."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._seen: dict[str, tuple[float | None, float]] = {}
        """When each note changed last by the storage's clock, and when that was noticed by this process's."""

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
