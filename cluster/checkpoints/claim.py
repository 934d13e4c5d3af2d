"""Claims: checkpoints belong to one run, and within it to the newest worker group, which fences off earlier ones.

    claim.json         the run that writes here: its id and its main process. Replaced when a run begins, never by a
                       worker group, so that a group that was paused and wakes up cannot take the storage back.
    claims/RUN.group   the group of that run that writes now; every group replaces its own run's.
    claims/RUN.alive   touched every few seconds while the run is alive, removed at its end.

A group that was cut off from the cluster, or a run that was evicted, may not know about its successor. When it next
begins or commits a checkpoint or publishes, it finds a claim that is not its own, and stops.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cluster.checkpoints.heartbeat import BEAT_S, Heartbeat
from retrieval.storage.base import Storage
from retrieval.storage.notes import FOLDER

EXPIRY_S = 30.0
"""A run without a heartbeat for this long counts as dead, if its process cannot be checked directly."""
_CLAIM = "claim.json"
_POLL_S = 0.2
_TWO_PLACES = (
    "each run needs a location of its own: settings storage_path and, where it is set, train.checkpoint_path"
)
_log = logging.getLogger(__name__)


class StorageTaken(RuntimeError):
    """Another worker group now writes these checkpoints.

    Attributes:
        by: the run that the other group belongs to.
    """

    def __init__(self, message: str, by: str) -> None:
        super().__init__(message, by)  # both arguments, so that it can be unpickled by Ray in another process
        self.by = by

    def __str__(self) -> str:
        """The message for people."""
        return str(self.args[0])


class StorageInUse(RuntimeError):
    """Another live run writes here; the message names it and says what to do."""


class StorageNotClaimed(RuntimeError):
    """The claim cannot be written; the message says why and names the setting."""


@dataclass(frozen=True)
class Owner:
    """The run that claims a storage, and its main process.

    Attributes:
        machine: the boot and the process id namespace in which `pid` is valid.
        pid_started: clock ticks from boot to the start of the process, because process ids are reused.
        since_s: seconds since the epoch.
    """

    run_id: str
    host: str = ""
    machine: str = ""
    pid: int = 0
    pid_started: int = 0
    since_s: float = 0.0
    token: str = ""  # read by earlier versions of freshet, which fenced by it

    @staticmethod
    def of_this_process(run_id: str) -> Owner:
        """A new claim of the run of this process."""
        started = _process(os.getpid())
        assert started is not None
        token = uuid.uuid4().hex
        return Owner(run_id, socket.gethostname(), _machine(), os.getpid(), started[0], time.time(), token)

    @staticmethod
    def found_in(storage: Storage) -> Owner | None:
        """The claim of a storage; None if there is none or it cannot be parsed."""
        content = storage.notes.read(_CLAIM)
        known = {f.name for f in fields(Owner)}
        try:
            return Owner(**{name: value for name, value in json.loads(content).items() if name in known})
        except (ValueError, TypeError, AttributeError):
            return None

    def put_in(self, storage: Storage) -> None:
        """Claim it, replacing any earlier claim."""
        storage.notes.put(_CLAIM, json.dumps(asdict(self)).encode())

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since_s))
        return f"run {self.run_id} (host {self.host}, pid {self.pid}, since {since})"


@dataclass(frozen=True)
class Claim:
    """The claim of one worker group, made before it looks for a checkpoint to resume from."""

    storage: Storage
    run_id: str
    token: str

    def check(self) -> None:
        """Check that neither another run nor a later group of this one has claimed the storage since.

        On a disk, nothing can be committed after another claim, because claiming removes unfinished checkpoints. In an
        object store, which has no rename, a manifest that is being put at that moment still counts. The checkpoint is
        complete, and it is the last of its run.

        Raises:
            StorageTaken: the storage was claimed.
        """
        owner = Owner.found_in(self.storage)
        if owner is not None and owner.run_id != self.run_id:
            raise _taken(self.storage, f"run {owner.run_id}", owner.run_id)
        token = self.storage.notes.read(_group(self.run_id)).decode()
        if token not in ("", self.token):  # empty: the notes were deleted
            raise _taken(self.storage, "a later group of this run", self.run_id)


def join(storage: Storage, run_id: str) -> Claim:
    """Claim a storage for a new worker group, which fences off the earlier groups of its run.

    Raises:
        StorageTaken: another run has claimed the storage.
    """
    owner = Owner.found_in(storage)
    if owner is None:  # the group runs without a driver, or the notes were deleted
        Owner.of_this_process(run_id).put_in(storage)
    claim = Claim(storage, run_id, uuid.uuid4().hex)
    if owner is None or owner.run_id == run_id:
        storage.notes.put(_group(run_id), claim.token.encode())
    claim.check()
    storage.drop_unfinished()
    return claim


@contextmanager
def claimed_by_run(storage: Storage, run_id: str, *, take_over: bool = False) -> Iterator[None]:
    """Claim a storage for a run, and write heartbeats while the block runs.

    If an earlier run has died, it is succeeded at once if its process is known to be gone (on this machine); otherwise
    this waits until there was no heartbeat for `EXPIRY_S`.

    Args:
        storage: where the checkpoints are.
        run_id: of the new run.
        take_over: evict the run that has the storage, alive or not; it stops at its next checkpoint or version.
    Raises:
        StorageInUse: another run is alive here.
        StorageNotClaimed: the storage cannot be written.
    """
    before = Owner.found_in(storage)
    if before is not None and before.run_id != run_id:
        if take_over:
            _log.warning("%s is taken over from %s", storage.where, before)
        else:
            _wait_until_dead(storage, before)
    try:
        storage.notes.touch(
            _alive(run_id)
        )  # before the claim: a claim without a heartbeat counts as a dead run's
        Owner.of_this_process(run_id).put_in(storage)
        storage.drop_unfinished()
        for name in storage.notes.names():
            if name.endswith((".group", ".alive")) and name != _alive(run_id):
                storage.notes.remove(name)
    except OSError as error:
        raise StorageNotClaimed(
            f"{storage.where} cannot be written: {error} (setting: storage_path or train.checkpoint_path)"
        ) from error
    with signs_of_life(storage, run_id, ends_with_it=True):
        yield


def signs_of_life(storage: Storage, run_id: str, *, ends_with_it: bool = False) -> Heartbeat:
    """The heartbeat of a run, for as long as it holds the claim.

    Args:
        storage: where the checkpoints are.
        run_id: the run's.
        ends_with_it: whether the run ends with the heartbeat, so that a successor need not wait.
    """

    def still_owned() -> bool:
        owner = Owner.found_in(storage)
        return owner is None or owner.run_id == run_id

    return Heartbeat(storage.notes, _alive(run_id), still_owned, removes=ends_with_it)


def _wait_until_dead(storage: Storage, owner: Owner) -> None:
    """Wait until a run counts as dead.

    Raises:
        StorageInUse: it is alive.
    """
    first = last = storage.notes.changed(_alive(owner.run_id))
    if last is None or _is_gone(owner):
        return
    # Clocks may differ, so even an old heartbeat is watched for a few intervals.
    wait_s = min(max(EXPIRY_S - (time.time() - last), 3 * BEAT_S), EXPIRY_S)
    started = time.monotonic()
    told = False
    while last == first and not _is_running(owner):
        waited_s = time.monotonic() - started
        if waited_s > wait_s:
            _log.warning("%s has had no heartbeat for %.0f s; taking over from it", owner, EXPIRY_S)
            return
        if waited_s > 2 * BEAT_S and not told:
            _log.warning(
                "%s may have died: taking over after %.0f s without a heartbeat (--take-over: immediately)",
                owner,
                EXPIRY_S,
            )
            told = True
        time.sleep(_POLL_S)
        last = storage.notes.changed(_alive(owner.run_id))
        if last is None or _is_gone(owner):
            return
    raise StorageInUse(
        f"{storage.where} is in use by {owner}, last sign of life {max(0.0, time.time() - last):.0f} s ago: stop that "
        f"run, or evict it with --take-over ({_TWO_PLACES})"
    )


def _taken(storage: Storage, by: str, run_id: str) -> StorageTaken:
    return StorageTaken(
        f"{storage.where} was taken over by {by}, so this one stops; the other resumes from its last checkpoint "
        f"({_TWO_PLACES})",
        run_id,
    )


def _group(run_id: str) -> str:
    return f"{FOLDER}/{run_id or 'unnamed'}.group"


def _alive(run_id: str) -> str:
    return f"{FOLDER}/{run_id or 'unnamed'}.alive"


def _is_gone(owner: Owner) -> bool:
    """Whether a run's main process is known to have ended, which can only be checked on its own machine."""
    if owner.machine != _machine():
        return False
    found = _process(owner.pid)
    return found is None or found[0] != owner.pid_started or found[1] in "ZX"


def _is_running(owner: Owner) -> bool:
    """Whether it is known to run; a stopped process (SIGSTOP) is judged by its heartbeat."""
    found = _process(owner.pid) if owner.machine == _machine() else None
    return found is not None and found[0] == owner.pid_started and found[1] not in "TtZX"


def _machine() -> str:
    """The scope in which a process id identifies a process: this boot of this kernel, and this pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"unknown {uuid.uuid4().hex}"


def _process(pid: int) -> tuple[int, str] | None:
    """A process's start, in clock ticks since boot, and its state; None if it does not exist."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(rest[18]), state
