"""Storage of a live run is refused; that of a dead run is free, at once if the death can be checked."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cluster.checkpoints import claim, heartbeat
from cluster.checkpoints.claim import StorageInUse, StorageNotClaimed, StorageTaken, claimed_by_run, join
from retrieval.storage.opening import open_storage
from tests.support.full_disk import FULL, READ_ONLY, refusing

RUN = (
    "import sys, time; from cluster.checkpoints.claim import claimed_by_run\n"
    "from retrieval.storage.opening import open_storage\n"
    "with claimed_by_run(open_storage(sys.argv[1]), 'first'):\n"
    "    print('claimed', flush=True); sys.stdin.read()\n"
)


@pytest.fixture
def storage(tmp_path):
    return open_storage(tmp_path / "checkpoints")


@pytest.fixture
def first(storage):
    """Another process whose run `first` is alive on the storage."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, storage.where],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    try:
        assert process.stdout.readline() == b"claimed\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def quick(monkeypatch):
    """Beats and expiry in a tenth of the time."""
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.1)
    monkeypatch.setattr(claim, "BEAT_S", 0.1)
    monkeypatch.setattr(claim, "EXPIRY_S", 1.5)


def elsewhere(storage, **changes):
    """The claim looks as if its process were on another machine."""
    content = json.loads(storage.notes.read("claim.json"))
    storage.notes.put("claim.json", json.dumps(content | {"machine": "another"} | changes).encode())


def test_a_run_that_is_alive_is_named_with_the_way_out(storage, first):
    with pytest.raises(StorageInUse) as refused, claimed_by_run(storage, "second"):
        pass
    said = str(refused.value)
    host = os.uname().nodename
    for part in (f"in use by run first (host {host}, pid {first.pid}, since 20", "last sign", "--take-over"):
        assert part in said
    assert "\n" not in said
    join(storage, "first").check()


def test_on_purpose_it_is_evicted_and_takes_nothing_back(storage, first):
    group = join(storage, "first")
    with claimed_by_run(storage, "second", take_over=True):
        for act in (group.check, lambda: join(storage, "first")):
            with pytest.raises(StorageTaken, match="taken over by run second"):
                act()
        join(storage, "second").check()


def test_a_run_that_was_killed_on_this_machine_is_succeeded_at_once(storage, first):
    first.send_signal(signal.SIGKILL)
    first.wait()
    started = time.monotonic()
    with claimed_by_run(storage, "second"):
        assert time.monotonic() - started < 1.0
        join(storage, "second").check()


def test_a_zombie_is_as_dead_as_a_process_whose_id_went_to_another(storage, first):
    first.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
    with claimed_by_run(storage, "second"):
        pass
    elsewhere(storage, run_id="third", machine=claim._machine(), pid=os.getpid(), pid_started=1)
    storage.notes.touch("claims/third.alive")
    with claimed_by_run(storage, "fourth"):
        pass


def test_a_run_that_ended_is_succeeded_at_once(storage, first):
    first.communicate(b"")
    assert storage.notes.names() == []
    elsewhere(storage)
    started = time.monotonic()
    with claimed_by_run(storage, "second"):
        assert time.monotonic() - started < 1.0


def test_a_run_that_was_stopped_is_succeeded_when_its_signs_of_life_expire_and_wakes_up_evicted(
    storage, first, quick, caplog
):
    """SIGSTOP: the process is there, and for all that anybody can see it may never go on."""
    group = join(storage, "first")
    first.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WNOWAIT)
    started = time.monotonic()
    with claimed_by_run(storage, "second"):
        assert 0.2 < time.monotonic() - started < 6.0
        first.send_signal(signal.SIGCONT)
        first.communicate(b"")
        join(storage, "second").check()
        for act in (group.check, lambda: join(storage, "first")):
            with pytest.raises(StorageTaken, match="run second"):
                act()
        assert "claims/first.alive" not in storage.notes.names()
    assert "no heartbeat" in caplog.text


def test_a_run_on_another_machine_is_refused_when_it_beats_and_succeeded_when_it_does_not(storage, quick):
    with claimed_by_run(storage, "first"):
        elsewhere(storage)
        with (
            pytest.raises(StorageInUse, match="last sign of life 0 s ago"),
            claimed_by_run(storage, "second"),
        ):
            pass
    storage.notes.touch("claims/first.alive")  # as a machine that loses its power leaves it
    started = time.monotonic()
    with claimed_by_run(storage, "second"):
        assert 1.0 < time.monotonic() - started < 5.0


def test_what_another_machine_touched_long_ago_by_this_clock_is_watched_for_some_beats_only(storage, quick):
    with claimed_by_run(storage, "first"):
        elsewhere(storage)
        path = storage.root / "claims" / "first.alive"
    path.touch()
    os.utime(path, (1.0, 1.0))
    started = time.monotonic()
    with claimed_by_run(storage, "second"):
        assert time.monotonic() - started < 1.4


def test_two_signs_of_life_of_one_run_do_not_end_each_other(storage, quick):
    with claimed_by_run(storage, "first"):
        with claim.signs_of_life(storage, "first"):
            pass
        assert "claims/first.alive" in storage.notes.names()
    assert storage.notes.names() == []


@pytest.mark.parametrize("code", [FULL, READ_ONLY])
def test_a_storage_that_cannot_be_written_is_one_line_with_the_setting(storage, tmp_path, code):
    with (
        refusing("mkdir", code, below=tmp_path),
        pytest.raises(StorageNotClaimed, match=rf"{tmp_path}.*\[Errno {code}\].*storage_path"),
        claimed_by_run(storage, "first"),
    ):
        pass


def test_a_full_disk_does_not_make_a_run_look_dead(storage, quick):
    """A sign of life is a time, which needs no room."""
    with claimed_by_run(storage, "first"):
        elsewhere(storage)
        with refusing("open", FULL, below=storage.root):
            seen = storage.notes.changed("claims/first.alive")
            deadline = time.monotonic() + 10
            while storage.notes.changed("claims/first.alive") == seen:
                assert time.monotonic() < deadline
                time.sleep(0.02)
