"""Whose the checkpoints are: a run's, and of that run the group's that came last, which fences off every earlier one.

    claim.json         the run that writes here: its id, and the process that speaks for it. Replaced when a run begins,
                       never by a group of workers, so one that was stopped and wakes up takes nothing back.
    claims/RUN.group   the group of that run that writes now; every group replaces its own run's.
    claims/RUN.alive   touched every few seconds while the run lives, removed at its end.

A group that was cut off from the cluster, or a run that was evicted, may not know of its successor. It finds another
claim than its own when it next begins or commits a checkpoint or publishes, and stops.
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
"""A run that has given no sign of life for so long is dead, if nothing nearer says so."""
_CLAIM = "claim.json"
_POLL_S = 0.2
_TWO_PLACES = (
    "each run needs a location of its own: settings storage_path and, where it is set, train.checkpoint_path"
)
_log = logging.getLogger(__name__)


class StorageTaken(RuntimeError):
    """Another group of workers goes on from these checkpoints.

    Attributes:
        by: the run that the other group belongs to.
    """

    def __init__(self, message: str, by: str) -> None:
        super().__init__(message, by)  # both, or it could not be read in another process
        self.by = by

    def __str__(self) -> str:
        """What a person reads."""
        return str(self.args[0])


class StorageInUse(RuntimeError):
    """A run that is alive writes here; the message names it and says what to do."""


class StorageNotClaimed(RuntimeError):
    """The claim cannot be written; the message says why and names the setting."""


@dataclass(frozen=True)
class Owner:
    """The run that claims a storage, and the process that speaks for it.

    Attributes:
        machine: the boot and the space of process ids in which `pid` means something.
        pid_started: clock ticks from the boot to the start of the process; another one may get the same id.
        since_s: seconds since the epoch.
    """

    run_id: str
    host: str = ""
    machine: str = ""
    pid: int = 0
    pid_started: int = 0
    since_s: float = 0.0
    token: str = ""  # for versions of freshet that fenced by it

    @staticmethod
    def of_this_process(run_id: str) -> Owner:
        """A claim of the run of this process, as of now."""
        started = _process(os.getpid())
        assert started is not None
        token = uuid.uuid4().hex
        return Owner(run_id, socket.gethostname(), _machine(), os.getpid(), started[0], time.time(), token)

    @staticmethod
    def found_in(storage: Storage) -> Owner | None:
        """Who claims a storage; None if nobody does, or the claim cannot be understood."""
        content = storage.notes.read(_CLAIM)
        known = {f.name for f in fields(Owner)}
        try:
            return Owner(**{name: value for name, value in json.loads(content).items() if name in known})
        except (ValueError, TypeError, AttributeError):
            return None

    def put_in(self, storage: Storage) -> None:
        """Claim it, whoever had it."""
        storage.notes.put(_CLAIM, json.dumps(asdict(self)).encode())

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since_s))
        return f"run {self.run_id} (host {self.host}, pid {self.pid}, since {since})"


@dataclass(frozen=True)
class Claim:
    """The claim of one group of workers, made before it looks for a checkpoint to go on from."""

    storage: Storage
    run_id: str
    token: str

    def check(self) -> None:
        """See that neither another run nor a later group of this one has claimed the storage since.

        On a disk nothing can be committed after another's claim: that removes what was being written. In an object
        store, which has no rename, a manifest that is being put at this very moment still counts; the checkpoint is
        whole, and its run ends with it.

        Raises:
            StorageTaken: somebody has.
        """
        owner = Owner.found_in(self.storage)
        if owner is not None and owner.run_id != self.run_id:
            raise _taken(self.storage, f"run {owner.run_id}", owner.run_id)
        token = self.storage.notes.read(_group(self.run_id)).decode()
        if token not in ("", self.token):  # empty: somebody has tidied up
            raise _taken(self.storage, "a later group of this run", self.run_id)


def join(storage: Storage, run_id: str) -> Claim:
    """A group of workers begins: it fences off the earlier groups of its run.

    Raises:
        StorageTaken: the storage is another run's by now.
    """
    owner = Owner.found_in(storage)
    if owner is None:  # nobody started the run but this group itself, or somebody has tidied up
        Owner.of_this_process(run_id).put_in(storage)
    claim = Claim(storage, run_id, uuid.uuid4().hex)
    if owner is None or owner.run_id == run_id:
        storage.notes.put(_group(run_id), claim.token.encode())
    claim.check()
    storage.drop_unfinished()
    return claim


@contextmanager
def claimed_by_run(storage: Storage, run_id: str, *, take_over: bool = False) -> Iterator[None]:
    """A run begins: the storage is its own, and it gives signs of life while the block runs.

    A run that had it before and died is succeeded at once if its death can be seen (its process is gone from this
    machine), else once it has given no sign of life for `EXPIRY_S`, which this waits for.

    Args:
        storage: where the checkpoints are.
        run_id: of the run that begins.
        take_over: evict the run that has it, alive or not; it stops at its next checkpoint or version.
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
        storage.notes.touch(_alive(run_id))  # before the claim: one without it is a dead run's
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
    """A heartbeat of a run that has claimed the storage, for as long as it has it.

    Args:
        storage: where the checkpoints are.
        run_id: the run's.
        ends_with_it: whether the run ends with the heartbeat, so that nobody need wait for another.
    """

    def still_owned() -> bool:
        owner = Owner.found_in(storage)
        return owner is None or owner.run_id == run_id

    return Heartbeat(storage.notes, _alive(run_id), still_owned, removes=ends_with_it)


def _wait_until_dead(storage: Storage, owner: Owner) -> None:
    """Until nothing can be expected of a run any more.

    Raises:
        StorageInUse: it is alive.
    """
    first = last = storage.notes.changed(_alive(owner.run_id))
    if last is None or _is_gone(owner):
        return
    # Clocks may differ: what was touched long ago by this one is still watched for some beats.
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
        f"{storage.where} was taken over by {by}, so this one stops; its checkpoints until then are what the other "
        f"goes on from ({_TWO_PLACES})",
        run_id,
    )


def _group(run_id: str) -> str:
    return f"{FOLDER}/{run_id or 'unnamed'}.group"


def _alive(run_id: str) -> str:
    return f"{FOLDER}/{run_id or 'unnamed'}.alive"


def _is_gone(owner: Owner) -> bool:
    """Whether the process that speaks for a run is known to have ended: only on its own machine can that be seen."""
    if owner.machine != _machine():
        return False
    found = _process(owner.pid)
    return found is None or found[0] != owner.pid_started or found[1] in "ZX"


def _is_running(owner: Owner) -> bool:
    """Whether it is known to run: one that was stopped (SIGSTOP) is judged by its signs of life."""
    found = _process(owner.pid) if owner.machine == _machine() else None
    return found is not None and found[0] == owner.pid_started and found[1] not in "TtZX"


def _machine() -> str:
    """Where a process id means the same process: this boot of this kernel, and this space of process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"unknown {uuid.uuid4().hex}"


def _process(pid: int) -> tuple[int, str] | None:
    """When a process started, in clock ticks since the boot, and its state; None if there is none."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(rest[18]), state
