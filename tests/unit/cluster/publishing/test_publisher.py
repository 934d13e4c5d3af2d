"""Several publishers on one storage, and failing storage: at most a version is lost, never the run."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.collectives import Collectives
from cluster.publishing.publisher import Publisher
from retrieval.versions.searcher import Searcher
from tests.support.full_disk import FULL, READ_ONLY, files_of_at_most, refusing
from tests.support.unit_runs import small_run, train_steps
from tests.unit.retrieval.indexes import fake_gpu_faiss

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run():
    trained = small_run()
    train_steps(trained, 2)
    return trained


@pytest.fixture
def publisher_of(run, tmp_path):
    """Makes a publisher on the test's storage; `attempt(publisher)` is a version as the worker makes it."""
    run.config.storage_path = str(tmp_path)
    return lambda check=lambda: None: Publisher(Collectives(), run.config, check)


@pytest.fixture
def snapshot_of(run):
    def take(publisher, step=1):
        metadata = {"step": step, "known_items": int(run.catalogue.item_ids.shape[0])}
        return publisher.snapshot(run.model, run.table, run.catalogue, [], metadata)

    return take


@pytest.fixture
def attempt(snapshot_of):
    def publish(publisher):
        publisher.unpublished.add(np.array([1], np.int64))
        snapshot = snapshot_of(publisher)
        if snapshot is not None:
            publisher.build_in_background(snapshot)
            publisher.wait()

    return publish


def test_a_trainer_and_two_refreshes_of_one_step_publish_beside_one_another(publisher_of, snapshot_of):
    publishers = [publisher_of() for _ in range(3)]
    snapshots = [snapshot_of(publisher) for publisher in publishers]
    names = [p.build(s).version.name for p, s in zip(publishers, snapshots, strict=True)]
    assert names == ["v00000001", "v00000002", "v00000003"]
    assert list((publishers[0].storage / ".publish").glob("attempt-*")) == []


def test_an_index_that_the_gpu_has_no_room_for_is_published_from_the_cpu(
    monkeypatch, caplog, publisher_of, snapshot_of
):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (1000, 80 << 30))
    fake_gpu_faiss.install(monkeypatch)
    publisher = publisher_of()
    publisher._index_config = replace(publisher._index_config, device="cuda")
    assert publisher.build(snapshot_of(publisher)).version is not None
    assert fake_gpu_faiss.Resources.made == []
    assert "it is built on the CPU" in caplog.text


def test_an_attempt_whose_owner_was_killed_is_removed_by_the_next_and_a_living_one_stays(
    publisher_of, snapshot_of, tmp_path
):
    code = (
        "import os, signal, sys, pathlib; from retrieval.storage.owned_folder import OwnedFolders\n"
        "folder = OwnedFolders(pathlib.Path(sys.argv[1]), 'attempt-').make(); folder.share()\n"
        "(folder.path / 'items-0000.arrow').write_bytes(b'half')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / ".publish")], env=environment, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    [dead] = (tmp_path / ".publish").glob("attempt-*")
    living = snapshot_of(publisher_of())
    other = snapshot_of(publisher_of())
    assert {*(tmp_path / ".publish").glob("attempt-*")} == {living.folder.path, other.folder.path}
    assert not dead.exists()


def _full(tmp_path, what):
    """A disk on which this fails: every write, or one call below the folder of parts or of versions."""
    if what == "writes":
        return files_of_at_most(0)
    call, folder, code = what
    return refusing(call, code, below=tmp_path / folder)


@pytest.mark.parametrize(
    "what",
    [
        "writes",
        ("mkdir", ".publish", FULL),
        ("open", ".publish", FULL),
        ("mkdir", "index/.building", FULL),
        ("open", "index/.building", FULL),
        ("rename", "index/.building", FULL),
        ("replace", "index/.CURRENT", FULL),
        ("fsync", "", FULL),
        ("mkdir", "", READ_ONLY),
        ("open", "", READ_ONLY),
    ],
    ids=str,
)
def test_storage_that_fails_costs_the_version_and_with_room_again_the_next_attempt_is_live(
    publisher_of, attempt, tmp_path, caplog, what
):
    publisher = publisher_of()
    attempt(publisher)
    with ExitStack() as disk:
        disk.enter_context(_full(tmp_path, what))
        for _ in range(2):
            attempt(publisher)
            assert publisher.problem.startswith("index versions cannot be written")
    assert caplog.text.count("index versions cannot be written") == 1
    assert Searcher(tmp_path / "index").version.name == "v00000001"
    assert list((tmp_path / ".publish").glob("attempt-*")) == []
    attempt(publisher)
    assert publisher.problem == ""
    assert "works again" in caplog.text
    live = Searcher(tmp_path / "index").version
    assert live is not None
    assert live == publisher.last.version
    assert publisher.freshness.run.counts.sum() == 4  # what was trained meanwhile is in the last one
    assert not [
        p.name for p in (tmp_path / "index").iterdir() if p.name.startswith((".building", ".CURRENT"))
    ]


@pytest.mark.parametrize("folder", [".publish", "index", ""])
def test_a_folder_that_is_removed_meanwhile_costs_one_version(
    publisher_of, snapshot_of, attempt, tmp_path, folder
):
    publisher = publisher_of()
    attempt(publisher)
    snapshot = snapshot_of(publisher)
    shutil.rmtree(tmp_path / folder)
    publisher.build_in_background(snapshot)
    publisher.wait()
    attempt(publisher)
    assert Searcher(tmp_path / "index").version == publisher.last.version
    assert publisher.problem == ""


def test_who_may_not_publish_any_more_puts_nothing_live_though_it_was_built(publisher_of, snapshot_of):
    taken = []

    def check():
        if taken:
            raise RuntimeError("taken over")

    publisher = publisher_of(check)
    snapshot = snapshot_of(publisher)
    taken.append(True)
    publisher.build_in_background(snapshot)
    with pytest.raises(RuntimeError, match="taken over"):
        publisher.wait()
    assert publisher.store.names() == []
