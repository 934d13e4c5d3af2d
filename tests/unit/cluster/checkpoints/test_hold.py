"""A checkpoint that is being read is not removed while its reader is alive."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from cluster.checkpoints import heartbeat, hold
from cluster.checkpoints.checkpoint import CheckpointStore, open_checkpoint
from cluster.checkpoints.hold import holding
from tests.support.full_disk import READ_ONLY, refusing


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=1)


def _commit(store, step, parent=None):
    writing = store.begin(step)
    files = [writing.write_tensors("towers.safetensors", {"w": torch.full((2,), float(step))})]
    committed = store.commit(writing, files, {}, parent)
    store.prune(committed)
    return committed


def test_a_checkpoint_and_what_it_builds_on_stay_while_they_are_read_and_go_afterwards(store):
    delta = _commit(store, 2, _commit(store, 1))
    with holding(delta.storage, delta.name, "freshet refresh"):
        _commit(store, 3)
        _commit(store, 4)
        assert store.names() == ["step-00000001", "step-00000002", "step-00000004"]
        assert open_checkpoint(delta.path).step == 2
    _commit(store, 5)
    assert store.names() == ["step-00000005"]
    assert store.storage.notes.names() == []


def test_several_readers_hold_what_each_of_them_reads(store):
    with holding(store.storage, _commit(store, 1).name, "a"), holding(store.storage, "step-00000001", "b"):
        with holding(store.storage, _commit(store, 2).name, "c"):
            _commit(store, 3)
            assert len(store.names()) == 3
        _commit(store, 4)
        assert store.names() == ["step-00000001", "step-00000004"]


def test_the_hold_of_a_reader_that_was_killed_expires(store, monkeypatch):
    monkeypatch.setattr(hold, "HOLD_EXPIRY_S", 1.0)
    first = _commit(store, 1)
    code = (
        "import sys, os, signal; from cluster.checkpoints.hold import holding\n"
        "from retrieval.storage.opening import open_storage\n"
        "with holding(open_storage(sys.argv[1]), 'step-00000001', 'refresh'): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", code, store.where]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    newest, started = _commit(store, 2), time.monotonic()
    assert store.names() == [first.name, newest.name]
    while first.name in store.names():
        assert time.monotonic() - started < 10
        time.sleep(0.1)
        store.prune(newest)
    assert time.monotonic() - started > 1.0
    assert store.storage.notes.names() == []


def test_the_hold_of_a_reader_that_lives_does_not_expire(store, monkeypatch):
    monkeypatch.setattr(hold, "HOLD_EXPIRY_S", 0.5)
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.05)
    first = _commit(store, 1)
    with holding(first.storage, first.name, "freshet refresh"):
        newest, until = _commit(store, 2), time.monotonic() + 1.5
        while time.monotonic() < until:
            store.prune(newest)
            assert first.name in store.names()
            time.sleep(0.1)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"checkpoint": "../elsewhere"}'])
def test_a_hold_that_cannot_be_understood_holds_nothing(store, content):
    _commit(store, 1)
    store.storage.notes.put("claims/x.hold.json", content)
    _commit(store, 2)
    assert store.names() == ["step-00000002"]


def test_who_may_only_read_reads_without_a_hold(store, tmp_path):
    first = _commit(store, 1)
    with refusing("mkdir", READ_ONLY, below=tmp_path), holding(first.storage, first.name, "freshet refresh"):
        assert open_checkpoint(first.path).step == 1
