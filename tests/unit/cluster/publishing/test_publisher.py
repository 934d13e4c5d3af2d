"""Versions of checkpoints, by one rank: a failure loses a version at most, never the run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointStore
from cluster.checkpoints.claim import StorageTaken
from cluster.checkpoints.hold import Holds
from cluster.collectives import Collectives
from cluster.publishing import publisher as publishing
from cluster.publishing.attempt import Outcome, make_version
from cluster.publishing.publisher import Publisher
from cluster.publishing.quality import last_events
from cluster.queries.served_model import follow_models
from retrieval.storage.owned_folder import OwnedFolders
from retrieval.versions.searcher import Searcher
from retrieval.versions.store import VersionCorrupt
from streaming.catalogue.records import CatalogueUpdate
from streaming.events.schema import DELETED
from tests.support.checkpointing import save_checkpoint
from tests.support.full_disk import FULL, READ_ONLY, files_of_at_most, refusing
from tests.support.unit_runs import CPU, small_run, train_steps
from tests.unit.retrieval.indexes import fake_gpu_faiss

pytestmark = pytest.mark.usefixtures("one_thread")


class Trained:
    """A run of two steps with a checkpoint in a folder of the test's own."""

    def __init__(self, run, folder):
        self.run, self.folder = run, folder
        run.config.storage_path = str(folder)
        self.store = CheckpointStore(run.config.checkpoint_location)
        self.checkpoint = save_checkpoint(run, self.store, Collectives())

    def publisher(self, check=lambda: None, min_quality_events=200, **train):
        config = self.run.config
        index = replace(config.index, min_quality_events=min_quality_events)
        config = replace(config, index=index, train=replace(config.train, **train))
        return Publisher(Collectives(), config, CPU, check)

    def attempt(self, publisher, *new_events):
        """A version as the worker makes it, and events that were sampled after the checkpoint's snapshot."""
        publisher.unpublished.add(np.array([1], np.int64))
        publisher.cover()
        for batch in new_events:
            publisher.events.add(batch)
        self.start(publisher)
        publisher.wait()

    def start(self, publisher):
        publisher.start(self.checkpoint, self.run.progressive.recent_queries, self.run.catalogue.item_count)

    @property
    def sampled(self):
        """The last events of all users, as if they had just been trained on."""
        users = np.concatenate([self.run.users.users_of(p) for p in self.run.partitions])
        return last_events(users, self.run.users, self.run.catalogue, self.run.config.stream.history_length)

    @property
    def live(self):
        return Searcher(self.folder / "index").version


@pytest.fixture(scope="module")
def run():
    trained = small_run()
    train_steps(trained, 2)
    return trained


@pytest.fixture
def trained(run, tmp_path):
    return Trained(run, tmp_path)


def test_a_version_names_the_checkpoint_and_the_step_that_it_is_of(trained):
    trained.attempt(trained.publisher())
    manifest = trained.live.manifest
    assert manifest["checkpoint"] == trained.checkpoint.location
    assert (manifest["step"], manifest["events_trained"]) == (2, trained.run.events_trained)


def test_the_generator_that_dropout_draws_from_is_left_alone(trained):
    before = torch.get_rng_state()
    trained.attempt(trained.publisher())
    assert torch.equal(torch.get_rng_state(), before)


def test_its_checkpoint_is_held_while_a_version_is_built_and_no_longer(trained):
    held = []
    publisher = trained.publisher(lambda: held.append(Holds(trained.store.storage).names()))
    trained.attempt(publisher)
    assert held
    assert all(names == {trained.checkpoint.name} for names in held)
    assert Holds(trained.store.storage).names() == set()


def test_publishers_of_one_storage_work_beside_one_another(trained):
    publishers = [trained.publisher() for _ in range(3)]
    for publisher in publishers:
        trained.start(publisher)
    for publisher in publishers:
        publisher.wait()
    assert {p.last.version.name for p in publishers} == {"v00000001", "v00000002", "v00000003"}
    assert list((trained.folder / ".publish").glob("attempt-*")) == []


def test_what_was_trained_after_the_snapshot_is_not_in_the_version(trained):
    publisher = trained.publisher()
    publisher.unpublished.add(np.array([1, 2], np.int64))
    publisher.cover()
    publisher.unpublished.add(np.array([3], np.int64))
    trained.start(publisher)
    publisher.wait()
    assert publisher.freshness.run.counts.sum() == 2
    trained.attempt(publisher)
    assert publisher.freshness.run.counts.sum() == 4


def _full(tmp_path, what):
    """A disk on which this fails: every write, or one call below a folder."""
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
    trained, tmp_path, caplog, what
):
    publisher = trained.publisher()
    trained.attempt(publisher)
    with ExitStack() as disk:
        disk.enter_context(_full(tmp_path, what))
        for _ in range(2):
            trained.attempt(publisher)
            assert publisher.problem.startswith("index versions cannot be written")
    assert caplog.text.count("; the run continues and will retry") == 1
    assert trained.live.name == "v00000001"
    assert list((tmp_path / ".publish").glob("attempt-*")) == []
    trained.attempt(publisher)
    assert publisher.problem == ""
    assert "works again" in caplog.text
    assert trained.live == publisher.last.version
    assert publisher.freshness.run.counts.sum() == 4  # what was trained meanwhile is in the last one
    assert not [
        p.name for p in (tmp_path / "index").iterdir() if p.name.startswith((".building", ".CURRENT"))
    ]


@pytest.mark.parametrize("folder", [".publish", "index"])
def test_a_folder_that_is_removed_meanwhile_costs_one_version(trained, tmp_path, folder):
    checks = []

    def remove_once():
        checks.append(folder)
        if len(checks) == 6:  # the second version is built and about to be committed
            shutil.rmtree(tmp_path / folder)

    publisher = trained.publisher(remove_once)
    for _ in range(3):
        trained.attempt(publisher)
    assert len(checks) == 9
    assert trained.live == publisher.last.version
    assert publisher.problem == ""


def test_a_checkpoint_that_is_gone_costs_the_version(trained):
    publisher = trained.publisher()
    shutil.rmtree(trained.checkpoint.path)
    trained.attempt(publisher)
    assert trained.checkpoint.name in publisher.problem
    assert publisher.store.names() == []


def test_a_checkpoint_without_items_costs_the_version(tmp_path):
    run = small_run()
    train_steps(run, 2)
    known = run.catalogue.snapshot()
    gone = pa.array(np.ones(known.items.num_rows, np.bool_))
    items = known.items.set_column(known.items.column_names.index(DELETED), DELETED, gone)
    run.catalogue.apply(CatalogueUpdate(items, known.users))
    assert run.catalogue.item_count == 0
    trained = Trained(run, tmp_path)
    publisher = trained.publisher()
    trained.attempt(publisher)
    assert publisher.problem == "index versions cannot be written: there are no items to index"
    assert publisher.store.names() == []


def test_who_may_not_publish_any_more_puts_nothing_live_though_it_was_built(trained):
    asked = []

    def check():
        asked.append(True)
        if len(asked) > 2:  # once it is built
            raise StorageTaken("taken over", "another run")

    publisher = trained.publisher(check)
    trained.start(publisher)
    with pytest.raises(StorageTaken, match="taken over"):
        publisher.wait()
    assert publisher.store.names() == []


def test_an_index_that_the_gpu_has_no_room_for_is_published_from_the_cpu(monkeypatch, caplog, trained):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (1000, 80 << 30))
    fake_gpu_faiss.install(monkeypatch)
    publisher = trained.publisher()
    index = replace(publisher._config.index, device="cuda")
    publisher._config = replace(publisher._config, index=index)
    trained.attempt(publisher)
    assert publisher.last.version is not None
    assert fake_gpu_faiss.Resources.made == []
    assert "it is built on the CPU" in caplog.text


def test_a_version_that_its_gate_refuses_leaves_the_live_one_and_its_events_for_the_next(trained):
    publisher = trained.publisher()
    trained.attempt(publisher)
    publisher.unpublished.add(np.array([1], np.int64))
    publisher.cover()
    publisher.start(trained.checkpoint, [np.full((3, 8), np.nan, np.float32)], 50)
    publisher.wait()
    assert publisher.last.version is None
    assert (trained.live.name, publisher.problem) == ("v00000001", "")
    trained.attempt(publisher)
    assert publisher.freshness.run.counts.sum() == 3


def test_a_builder_process_that_is_killed_costs_the_version_and_the_next_one_has_another(trained):
    checks, kills = [], {}

    def check():
        checks.append(publisher._process.pid)
        if len(checks) == kills.get("at"):
            os.kill(publisher._process.pid, signal.SIGKILL)

    publisher = trained.publisher(check, publish_in_thread_items=0, min_quality_events=3)
    trained.attempt(publisher)
    trained.attempt(publisher, trained.sampled)
    assert "after both were trained" in publisher.last.gate.checks[-1].note  # the worker was asked for them
    first = publisher._process.pid
    assert set(checks) == {first}  # it is kept
    assert os.getpriority(os.PRIO_PROCESS, first) > os.getpriority(os.PRIO_PROCESS, 0)
    asked = len(checks) // 2
    for kills["at"] in range(
        1, asked + 1
    ):  # before it begins, when its folder is made, when it is to go live
        checks.clear()
        trained.attempt(publisher)
        assert "ended with -9" in publisher.problem
        assert trained.live.name == "v00000002"
    kills.clear()
    trained.attempt(publisher)
    assert (publisher.problem, trained.live.name) == ("", "v00000003")
    assert publisher.freshness.run.counts.sum() == 3 + asked
    assert list((trained.folder / ".publish").glob("*-*")) == []
    last = publisher._process.pid
    assert last != first
    publisher.close()
    assert not Path(f"/proc/{last}").exists()


def test_a_builder_that_is_lost_after_its_version_went_live_costs_nothing(trained, monkeypatch, caplog):
    make = make_version

    def lost_at_the_end(*arguments):
        outcome = make(*arguments)
        assert outcome.report.version is not None
        return Outcome(problem="its builder ended with -9", lost=True)

    publisher = trained.publisher()
    trained.attempt(publisher)
    with monkeypatch.context() as patched:
        patched.setattr(publishing, "make_version", lost_at_the_end)
        trained.attempt(publisher)
    assert (publisher.problem, publisher.published, trained.live.name) == ("", 2, "v00000002")
    assert publisher.last.version == trained.live
    figures = {**publisher.last.figures(), "seconds": {}}
    assert figures == {name: trained.live.manifest[name] for name in figures} | {"seconds": {}}
    assert publisher.freshness.run.counts.sum() == 2
    assert "index version v00000002 is live, although afterwards its builder ended with -9" in caplog.text


def test_a_lost_builder_is_not_excused_by_a_version_of_another_checkpoint(trained, monkeypatch):
    other = Trained(trained.run, trained.folder / "other")
    elsewhere = replace(other.run.config, storage_path=str(other.folder))
    elsewhere.train = replace(elsewhere.train, index_path=str(trained.folder / "index"))
    beside = Publisher(Collectives(), elsewhere, CPU)

    publisher = trained.publisher(index_path=str(trained.folder / "index"))

    def lost(*arguments):
        other.attempt(beside)
        return Outcome(problem="its builder ended with -9", lost=True)

    monkeypatch.setattr(publisher, "_build", lost)
    trained.attempt(publisher)
    assert beside.published == 1
    assert publisher.problem.endswith("its builder ended with -9")
    assert publisher.published == 0


_WORKER = """
import os, signal, sys
from cluster.checkpoints.checkpoint import open_checkpoint
from cluster.collectives import Collectives
from cluster.publishing.publisher import Publisher
from tests.support.unit_runs import CPU, small_config

def check():
    print(publisher._process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

config = small_config()
config.storage_path, config.train.publish_in_thread_items = sys.argv[1], 0
publisher = Publisher(Collectives(), config, CPU, check)
publisher.start(open_checkpoint(sys.argv[2]), [], 50)
publisher.wait()
"""


def test_a_builder_process_ends_with_its_worker_though_that_was_killed(trained, tmp_path):
    arguments = [sys.executable, "-c", _WORKER, str(tmp_path), trained.checkpoint.location]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    worker = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert worker.returncode == -signal.SIGKILL, worker.stderr
    builder = Path(f"/proc/{int(worker.stdout)}")
    deadline = time.monotonic() + 30
    while builder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    trained.attempt(trained.publisher())
    assert trained.live.name == "v00000001"
    assert list((tmp_path / ".publish").glob("*-*")) == []


def test_the_events_that_were_sampled_last_are_asked_of_the_candidate_and_of_the_live_version(trained):
    publisher = trained.publisher(min_quality_events=3)
    publisher.events.add(trained.sampled)
    before = torch.get_rng_state()
    trained.attempt(publisher)
    assert "quality" not in [check.name for check in publisher.last.gate.checks]  # nothing was live
    trained.attempt(publisher)
    [check] = [check for check in publisher.last.gate.checks if check.name == "quality"]
    assert f"the live version's is {check.value:.4g}" in check.note  # of the same checkpoint
    assert publisher.last.version.manifest["gate"][-1]["name"] == "quality"
    assert torch.equal(torch.get_rng_state(), before)  # which dropout draws from beside it


def test_each_file_of_a_version_that_finds_no_room_is_named_and_costs_only_the_version(trained, monkeypatch):
    publisher, make = trained.publisher(), OwnedFolders.make
    trained.attempt(publisher)
    names = trained.live.files()
    assert len(names) >= 7
    for name in names:

        def full(folders, name=name):
            made = make(folders)
            (made.path / name).symlink_to("/dev/full")
            return made

        with monkeypatch.context() as disk:
            disk.setattr(OwnedFolders, "make", full)
            trained.attempt(publisher)
        assert "No space left on device" in publisher.problem
        assert name in publisher.problem
        assert trained.live.name == "v00000001"
        assert list((trained.folder / ".publish").glob("attempt-*")) == []
    trained.attempt(publisher)
    assert publisher.problem == ""
    assert trained.live == publisher.last.version


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_damage_to_any_file_of_a_version_is_named_and_the_one_in_memory_goes_on_serving(trained, how):
    publisher = trained.publisher()
    trained.attempt(publisher)
    served = follow_models(trained.run.config)
    assert served.refresh()
    trained.attempt(publisher)
    for path in sorted(trained.live.path.iterdir()):
        content = path.read_bytes()
        changed = bytearray(content)
        changed[len(content) // 2] ^= 4
        path.write_bytes(content[:-1] if how == "truncated" else bytes(changed))
        with pytest.raises(VersionCorrupt, match=f"v00000002 is damaged: .*{path.name}"):
            served.refresh()
        assert served.current.version.name == "v00000001"
        path.write_bytes(content)
    assert served.refresh()
