"""A disk that fills up inside a write, at the storage's own calls rather than in a hook before them."""

import errno
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.audit.state import read_state
from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.checkpoints.manifest import CheckpointError
from cluster.collectives import Collectives
from cluster.training.state.worker_state import checkpointer_of
from retrieval.storage.local import LocalStorage
from tests.support.state_digests import digests
from tests.support.unit_runs import small_run, train_steps

pytestmark = pytest.mark.usefixtures("one_thread")


class _Disk:
    """Refuses what a test says while it is `full`; takes `room` bytes more before."""

    def __init__(self, refuses, room=0):
        self.refuses, self.room, self.full = refuses, room, False
        self.refused = 0

    def check(self, call):
        if self.full and self.refuses == call:
            self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _Sink:
    """A file on it: what still fits is written, as a real disk does, then the error comes."""

    def __init__(self, raw, disk):
        self._raw, self._disk, self._left = raw, disk, disk.room

    def write(self, data):
        if self._disk.full and self._disk.refuses == "write" and len(data) > self._left:
            self._raw.write(memoryview(data)[: self._left])
            self._raw.flush()
            self._left = 0
            self._disk.check("write")
        self._left -= len(data)
        return self._raw.write(data)

    def __getattr__(self, name):
        return getattr(self._raw, name)


@pytest.fixture
def fill(monkeypatch):
    """Makes the disk: what it refuses, and how many bytes of a file it takes before."""

    def make(refuses, room=0):
        disk = _Disk(refuses, room)

        def refusing(owner, name, call, concerns=lambda *arguments: True):
            real = getattr(owner, name)

            def act(*arguments, **options):
                if concerns(*arguments):
                    disk.check(call)
                return real(*arguments, **options)

            monkeypatch.setattr(owner, name, act)

        writing = LocalStorage.writing

        @contextmanager
        def limited(self, name, file):
            with writing(self, name, file) as raw:
                yield _Sink(raw, disk)

        monkeypatch.setattr(LocalStorage, "writing", limited)
        refusing(os, "fsync", "fsync")
        refusing(Path, "mkdir", "mkdir", lambda path, *rest, **options: ".writing-" in path.name)
        refusing(Path, "rename", "rename")
        refusing(Path, "open", "manifest", lambda path, *rest: path.name == "manifest.json" and "wb" in rest)
        return disk

    return make


def _try(checkpointer, run):
    """A checkpoint that need not succeed, as the loop writes it: what was committed."""
    checkpointer.begin(run.step)
    while not checkpointer.idle:
        checkpointer.copy_some(1.0)
        if checkpointer.ready:
            committed = checkpointer.advance()
            if committed is not None:
                return committed
        time.sleep(0.001)
    return None


@pytest.mark.parametrize(
    ("refuses", "room"),
    [("write", 0), ("write", 1500), ("fsync", 0), ("mkdir", 0), ("rename", 0), ("manifest", 0)],
)
def test_a_disk_that_is_full_inside_a_write_costs_the_checkpoint_and_nothing_is_left_of_it(
    tmp_path, caplog, fill, refuses, room
):
    """First a delta fails, then a full one, then the last of a run; with space again the next one holds everything."""
    disk = fill(refuses, room)
    store, run = CheckpointStore(tmp_path, keep=5), small_run()
    checkpointer = checkpointer_of(run, store, Collectives())
    train_steps(run, 1)
    first = _try(checkpointer, run)
    before = digests(read_state(first))
    disk.full = True
    for _ in range(2):
        train_steps(run, 1)
        seen, at = caplog.text.count("No space left on device"), disk.refused
        assert _try(checkpointer, run) is None
        assert caplog.text.count("No space left on device") == seen + 1
        assert disk.refused > at
    with pytest.raises(
        CheckpointError,
        match=rf"last checkpoint could not be written .*{tmp_path}.*storage_path",
    ):
        checkpointer.finish(run.step)
    assert CheckpointStore(tmp_path).names() == [first.name]
    found = CheckpointStore(tmp_path).newest()
    assert digests(read_state(found)) == before
    disk.full = False
    train_steps(run, 1)
    last = _try(checkpointer, run)
    checkpointer.close()
    assert last.manifest["kind"] == "full"
    assert {path.name for path in tmp_path.iterdir()} == {first.name, last.name}
    whole = checkpointer_of(run, CheckpointStore(tmp_path / "whole"), Collectives())
    assert digests(read_state(CheckpointStore(tmp_path).newest())) == digests(
        read_state(whole.finish(run.step))
    )
    whole.close()


def test_a_commit_whose_folder_cannot_be_synced_after_the_rename_is_whole_or_absent_and_the_run_goes_on(
    tmp_path, caplog, monkeypatch
):
    """It is told as failed, because a power cut may still undo it; the next one takes its place."""
    store, run = CheckpointStore(tmp_path, keep=5), small_run()
    checkpointer = checkpointer_of(run, store, Collectives())
    train_steps(run, 1)
    first = _try(checkpointer, run)

    def refuse(path):
        if path == tmp_path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("retrieval.storage.local.fsync_directory", refuse)
        train_steps(run, 1)
        assert _try(checkpointer, run) is None
    assert "was not committed: [Errno 28]" in caplog.text
    doubtful = CheckpointStore(tmp_path).newest()
    assert doubtful.step == 2
    assert CheckpointStore(tmp_path).names() == [first.name, doubtful.name]
    train_steps(run, 1)
    last = _try(checkpointer, run)
    checkpointer.close()
    assert (last.manifest["kind"], last.manifest["follows"]) == ("full", first.name)
    assert CheckpointStore(tmp_path).names() == [first.name, last.name]


@pytest.mark.parametrize("what", ["everything", "the base"])
def test_after_a_checkpoint_was_removed_under_the_run_nothing_builds_on_it(tmp_path, caplog, what):
    """A delta on what is gone could not be read by anybody, though it would be the newest."""
    root = tmp_path / "checkpoints"
    store, run = CheckpointStore(root, keep=5), small_run()
    checkpointer = checkpointer_of(run, store, Collectives())
    train_steps(run, 1)
    base = _try(checkpointer, run)
    shutil.rmtree(root if what == "everything" else base.path)
    train_steps(run, 1)
    last = _try(checkpointer, run)
    checkpointer.close()
    assert last.manifest["kind"] == "full"
    assert CheckpointStore(root).newest().step == 2
    assert f"{base.name} is missing from" in caplog.text


def test_why_no_checkpoint_is_written_is_known_until_one_is(tmp_path, fill):
    disk = fill("write")
    run = small_run()
    checkpointer = checkpointer_of(run, CheckpointStore(tmp_path), Collectives())
    train_steps(run, 1)
    disk.full = True
    _try(checkpointer, run)
    assert "No space left on device" in checkpointer.problem
    disk.full = False
    _try(checkpointer, run)
    checkpointer.close()
    assert checkpointer.problem == ""
