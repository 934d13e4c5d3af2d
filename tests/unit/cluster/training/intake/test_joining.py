"""A group that starts while the disk is full waits for room instead of using up its run's restarts."""

import time

import pytest

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.checkpoints.manifest import CheckpointError
from cluster.collectives import Collectives
from cluster.training import worker
from cluster.training.intake import joining
from cluster.training.intake.joining import join_run
from cluster.training.worker import Worker
from tests.support.full_disk import FULL, READ_ONLY, refusing


@pytest.fixture
def naps(monkeypatch):
    """What is done in each wait, instead of waiting."""
    done = []
    monkeypatch.setattr(joining.time, "sleep", lambda s: done.pop(0)())  # type: ignore[attr-defined]
    return done


def test_it_waits_for_room_and_says_so_once(tmp_path, naps, caplog):
    store = CheckpointStore(tmp_path / "checkpoints")
    disk = refusing("open", FULL, below=tmp_path)
    disk.__enter__()
    naps += [lambda: None, lambda: disk.__exit__(None, None, None)]
    join_run(store, "one", Collectives())
    assert naps == []
    assert caplog.text.count("No space left on device") == 1
    store.check_claim()
    assert store.storage.notes.read("claims/one.group")


def test_a_storage_that_takes_nothing_for_good_is_an_error(tmp_path, naps):
    store = CheckpointStore(tmp_path / "checkpoints")
    with refusing("mkdir", READ_ONLY, below=tmp_path), pytest.raises(OSError, match="Read-only"):
        join_run(store, "one", Collectives())


def test_a_growing_topic_waits_for_room_for_the_checkpoint_between(monkeypatch, caplog):
    """Its last checkpoint of the old number of partitions failed: nothing moves, and the loop comes again."""

    class Full:
        def commit_now(self):
            raise CheckpointError("the last checkpoint could not be written")

    class Run:
        step = 7

    growing = Worker.__new__(Worker)
    growing.run = before = Run()
    growing._saving = Full()
    monkeypatch.setattr(worker, "_STORAGE_RETRY_S", 0.0)
    started = time.monotonic()
    growing._grow(8)
    assert growing.run is before
    assert "could not be written" in caplog.text
    assert time.monotonic() - started < 5.0
