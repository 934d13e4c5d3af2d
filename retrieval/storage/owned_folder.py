"""Folders that live as long as their owners: locked while in use, removed by any process once no owner is left."""

from __future__ import annotations

import fcntl
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from retrieval.storage.durable import PRIVATE_FILE, PRIVATE_FOLDER, make_private

LOCK = ".lock"


@dataclass(frozen=True)
class OwnedFolder:
    """A folder in use; its lock ends with its owner, also by SIGKILL."""

    path: Path
    lock: IO[str]

    def share(self) -> None:
        """Let other processes own it too (`share_folder`); it is abandoned once no owner is left."""
        fcntl.flock(self.lock, fcntl.LOCK_SH)

    def remove(self) -> None:
        """Remove it with its content."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.lock.close()


@contextmanager
def share_folder(path: Path) -> Iterator[None]:
    """Own a folder together with its creator, also if the creator dies meanwhile.

    Raises:
        OSError: the folder is gone.
    """
    with (path / LOCK).open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


class OwnedFolders:
    """All folders of one prefix under a root, for any number of processes."""

    def __init__(self, root: Path, prefix: str) -> None:
        self._root, self._prefix = root, prefix

    def make(self) -> OwnedFolder:
        """A fresh folder, empty except for its lock; removes those that no process owns any more."""
        make_private(self._root)
        with self.exclusive():
            self._remove_abandoned()
            path = self._root / f"{self._prefix}{uuid.uuid4().hex}"
            path.mkdir(mode=PRIVATE_FOLDER)
            try:
                (path / LOCK).touch(PRIVATE_FILE)
                lock = (path / LOCK).open("r+")
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError:
                shutil.rmtree(path, ignore_errors=True)
                raise
        return OwnedFolder(path, lock)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """One process at a time; between creating a folder and locking it, no other process may look."""
        (self._root / LOCK).touch(PRIVATE_FILE)
        with (self._root / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _remove_abandoned(self) -> None:
        for folder in self._root.glob(f"{self._prefix}*"):
            if _abandoned(folder / LOCK):
                shutil.rmtree(folder, ignore_errors=True)


def _abandoned(lock: Path) -> bool:
    try:
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True
